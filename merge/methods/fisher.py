"""Fisher-weighted averaging (Matena and Raffel 2022, arXiv:2111.09832).

    W = sum_t w_t F_t o W_t / sum_t w_t F_t,      F_t the diagonal Fisher information of adapter t

On weights W_0 + DeltaW_t of one base, W_0 drops out and the same holds for updates. Where F_t comes from:

- one frozen A, h on B: the average is linear in B and exact there, entry by entry;
- else h on B and A, lifted to a row x column Fisher of W (:mod:`vlora.merge.curvature.lift`); the average has no low
  rank and is re-factorised by weighted least squares (:mod:`vlora.merge.low_rank.als`).

h is the Fisher diagonal of a Laplace posterior (``vlora posterior``: squared gradients) and its estimate in an IVON
posterior. The prior is left out: with it, the base would count once per adapter. Deviation: ``normalise`` scales each
F_t to mean 1 per module, because on the raw scale, N h, a better fitted adapter with its smaller gradients is outvoted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.curvature.lift import lift_update
from vlora.merge.low_rank.algebra import concatenate, resolve_rank, truncate
from vlora.merge.low_rank.als import Precision, Target, weighted_als
from vlora.merge.low_rank.recompress import pooled_precision, recompress
from vlora.merge.update import LoraUpdate, MergedModule, present, shared_a

__all__ = ["fisher", "fisher_merge"]

_FLOOR = 1e-6  # share of the mean Fisher that every entry has at least


def fisher(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    normalise: bool = True,
) -> MergedModule:
    """Fisher-weighted average of the updates of one module.

    Args:
        updates: Updates with h; an adapter without the module has no say in it.
        weights: w_t > 0; only their ratios count.
        rank: ``auto``, ``keep``, a number (at most sum r_t is used) or a share of energy; ``lossless`` for one frozen A
            only.
        normalise: Scale each Fisher to mean 1 per module; False takes N h.

    Raises:
        ConfigError: A weight is negative.
        IncompatibleAdaptersError: An adapter has no h, or ``lossless`` without one frozen A.
    """
    updates, weights = present(updates, weights)
    for update, weight in zip(updates, weights, strict=True):
        _check(update, weight)
    linear_in_b = shared_a(updates) and all(u.precision_a is None for u in updates)
    wanted = resolve_rank(updates, rank, exact=linear_in_b or len(updates) == 1)
    if linear_in_b:
        merged = _average_b(updates, weights, normalise)
        done = recompress(merged, updates, [1.0] * len(updates), wanted)
        report = {"clamped_fraction": 0.0, **done.report, "curvature": "fisher"}
        return MergedModule(pooled_precision(done.update, updates, [1.0] * len(updates)), report)
    return _separable(updates, weights, wanted, normalise)


def fisher_merge(tensors: Sequence[Tensor], fishers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The average on plain tensors; ``fishers`` have their shapes and are positive."""
    total = torch.stack([w * f for w, f in zip(weights, fishers, strict=True)]).sum(0)
    pulled = torch.stack([w * f * t for w, f, t in zip(weights, fishers, tensors, strict=True)]).sum(0)
    return pulled / total


def _average_b(updates: Sequence[LoraUpdate], weights: Sequence[float], normalise: bool) -> LoraUpdate:
    same = [u.with_scale(updates[0].scale) for u in updates]
    fishers = []
    for update in same:
        h = update.curvature_b
        if h is None:
            raise ValueError(f"{update.adapter!r} has no h")
        fishers.append(h)
    flat = 1.0 if normalise or not any(h.any() for h in fishers) else 0.0
    fishers = [
        h.clamp_min(_FLOOR * h.mean().item()) if h.any() else torch.full_like(h, flat) for h in fishers
    ]
    fishers = [h / h.mean() for h in fishers] if normalise else fishers
    b = fisher_merge([u.b for u in same], fishers, weights)
    # The posterior is pooled later; grams of one input say nothing about the average.
    return LoraUpdate(b, same[0].a, same[0].scale, adapter="merged", module=same[0].module)


def _separable(
    updates: Sequence[LoraUpdate], weights: Sequence[float], rank: int | float | None, normalise: bool
) -> MergedModule:
    if rank is None and len(updates) > 1:
        raise IncompatibleAdaptersError(
            f"a Fisher-weighted average has no lossless factors ({updates[0].module}); set rank to a number or a share "
            "of energy"
        )
    precisions, targets, rows, columns = [], [], [], []
    for update, weight in zip(updates, weights, strict=True):
        row, col = _lifted(update, normalise)
        precisions.append(Precision(weight, row, col))
        targets.append(Target(precisions[-1], update.scale * update.b, update.a))
        rows.append(weight * row)
        columns.append(weight * col / col.mean())
    shares = [(r / torch.stack(rows).sum(0)).mean().item() for r in rows]
    full = concatenate(updates, shares)
    left, right = ((torch.stack(v).sum(0) / sum(weights)).sqrt() for v in (rows, columns))
    start = truncate(full.b, full.a, full.rank if rank is None else rank, left, right)
    b, a, clamped = weighted_als(precisions, targets, start[:2])
    merged = LoraUpdate(b, a, adapter="merged", module=full.module)
    report = {"curvature": "fisher", "exact": len(updates) == 1, "clamped_fraction": clamped}
    return MergedModule(pooled_precision(merged, updates, [1.0] * len(updates)), report)


def _lifted(update: LoraUpdate, normalise: bool) -> tuple[Tensor, Tensor]:
    found = lift_update(update)
    if found is None:
        raise ValueError(f"{update.adapter!r} has no h")
    row, col = found
    return (row / row.mean() if normalise else row), col / col.mean() if normalise else col


def _check(update: LoraUpdate, weight: float) -> None:
    if update.precision_b is None:
        raise IncompatibleAdaptersError(
            f"method: fisher needs h of every adapter, but {update.adapter!r} has none for {update.module}; fit one "
            "with `vlora posterior`, or use method: linear"
        )
    if weight < 0:
        raise ConfigError(
            f"a Fisher average takes positive weights, got {weight:g} for {update.adapter!r}; to subtract an adapter "
            "use method: gradient_matching or task_arithmetic"
        )
