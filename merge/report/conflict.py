"""The conflict map: per module, how far adapters disagree where it matters, and what the merge will cost each of them.

With the curvature H_t = c_t S_t (x) G_t of :mod:`vlora.merge.curvature.quadratic` and |W|_t^2 = c_t tr(S_t W G_t W^T),

    increase_t          |X - W_t|_t^2 / |W_t|_t^2      0 the merge keeps the task's own loss, 1 as bad as no adapter
    predicted_loss_t    1/2 |X - W_t|_t^2              with h: nats per training example, adds up over modules
    disagreement        mean over pairs t, u and over both metrics of |W_t - W_u|^2 / (|W_t|^2 + |W_u|^2)
                        0 the same update, 1 unrelated, 2 opposite

It is a quadratic form without the slope at the adapter: it ranks modules, and is no estimate of the loss (measured in
``benchmarks/merge_quality``, table of the training loss on the way to the merge).

Lower is better everywhere. All products of a metric come from one stack of factors in float32, as these are numbers to
look at: for m = n = 4096 and four adapters of rank 16, two products of 4096 x 4096 by 4096 x 80 per adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlora.grams import Gram
from vlora.merge.curvature.quadratic import h_scale, metric_of
from vlora.merge.update import LoraUpdate

__all__ = ["conflict", "total_conflict"]

_DTYPE = torch.float32


def conflict(updates: Sequence[LoraUpdate], merged: LoraUpdate, examples: Sequence[int]) -> dict[str, Any]:
    """The map's entries of one module.

    Args:
        updates: The adapters' updates that took part.
        merged: What came out.
        examples: Training examples behind each adapter, 0 where they are not known.

    Returns:
        ``disagreement`` (None for one adapter), and per adapter ``increase``, ``predicted_loss`` and
        ``loss_without_adapter``.
    """
    rows = [i for i, u in enumerate(updates) if u.rank > 0]
    own = [_single(updates[i]) for i in rows]
    stack = [*own, _single(merged)]
    forms = [_form(updates[i], stack, place, max(1, examples[i])) for place, i in enumerate(rows)]
    disagreements = []
    result: dict[str, Any] = {"increase": {}, "predicted_loss": {}, "loss_without_adapter": {}}
    for place, (i, form) in enumerate(zip(rows, forms, strict=True)):
        lost, whole = _gap(form, -1, place), form[place, place].item()
        name = updates[i].adapter
        result["increase"][name] = lost / whole if whole > 0 else None
        result["predicted_loss"][name] = 0.5 * lost
        result["loss_without_adapter"][name] = 0.5 * whole
        disagreements += [
            _gap(form, place, other) / both
            for other in range(len(rows))
            if other != place and (both := (form[place, place] + form[other, other]).item()) > 0
        ]
    mean = sum(disagreements) / len(disagreements) if disagreements else None
    return {"disagreement": mean, **result}


def total_conflict(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per adapter, the predicted loss of the whole merge and its share of what the adapter is worth.

    Args:
        modules: Entries of :func:`conflict` per module.

    Returns:
        Name -> ``predicted_loss``, ``loss_without_adapter`` and ``increase``, their ratio; 0 is best.
    """
    totals: dict[str, dict[str, float]] = {}
    for values in modules.values():
        for name, lost in values.get("predicted_loss", {}).items():
            row = totals.setdefault(name, {"predicted_loss": 0.0, "loss_without_adapter": 0.0})
            row["predicted_loss"] += lost
            row["loss_without_adapter"] += values["loss_without_adapter"][name]
    for row in totals.values():
        whole = row["loss_without_adapter"]
        row["increase"] = row["predicted_loss"] / whole if whole > 0 else 0.0
    return totals


def _form(update: LoraUpdate, stack: Sequence[LoraUpdate], place: int, examples: int) -> Tensor:
    """Products of all updates in the metric of one adapter, which is number ``place``. Shape ``(k, k)``."""
    metric = metric_of(update, absolute=update.input_gram is None)
    sizes = [u.rank for u in stack]
    b = torch.cat([u.scale * u.b for u in stack], dim=1)
    a = torch.cat([u.a for u in stack], dim=0)
    narrow = replace(metric, output=_cast(metric.output), input=_cast(metric.input))
    left, right = narrow.from_outputs(b).mT @ b, narrow.from_inputs(a) @ a.mT
    scale = metric.scale
    if update.input_gram is not None:
        own = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
        reach_a = left[own, own].trace().item() / update.scale**2
        scale *= h_scale(metric, update, right[own, own].trace().item(), reach_a)
    blocks = [row.split(sizes, dim=1) for row in (left * right).split(sizes, dim=0)]
    sums = torch.tensor([[block.double().sum().item() for block in row] for row in blocks])
    return sums * scale / (examples if update.precision_b is not None else 1)


def _gap(form: Tensor, first: int, second: int) -> float:
    """|W_first - W_second|^2 from the products."""
    return max(0.0, (form[first, first] - 2 * form[first, second] + form[second, second]).item())


def _single(update: LoraUpdate) -> LoraUpdate:
    return replace(update, b=update.b.to(_DTYPE), a=update.a.to(_DTYPE))


def _cast(matrix: Gram | None) -> Gram | None:
    return None if matrix is None else matrix.to(_DTYPE)
