"""From merged modules and tensors back to a posterior: keys, dtypes, configuration, settings, lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlora.merge.adapters.ancestor import Ancestor
from vlora.merge.adapters.full_tensors import FullTensor
from vlora.merge.adapters.peft_layout import merged_config
from vlora.merge.adapters.reading import Inputs
from vlora.merge.curvature.total import DenseTotal, SpanTotal, total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.update import LoraUpdate
from vlora.posterior import Posterior, PosteriorMeta

__all__ = ["MergedTensors", "assemble", "mean_ess", "merged_curvature", "own_ess", "pooled_examples"]

_SMALLEST_SHARE = 1e-3  # of the prior: keeps h + weight_decay positive after rounding to float32


@dataclass
class MergedTensors:
    """Tensors of the merged adapter, filled module by module."""

    total_examples: int
    mean: dict[str, Tensor] = field(default_factory=dict)
    hess: dict[str, Tensor] = field(default_factory=dict)
    weight_decay: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def add_module(self, inputs: Inputs, module: str, update: LoraUpdate) -> None:
        """Store the factors of one module under PEFT's keys."""
        keys = inputs.keys_of(module)
        self._add(inputs, keys.a, update.a, update.precision_a, update.prior_a)
        self._add(inputs, keys.b, update.b, update.precision_b, update.prior_b)
        self.ranks[module], self.scales[module] = update.rank, update.scale

    def add_full(self, inputs: Inputs, key: str, value: FullTensor) -> None:
        """Store a fully trained tensor."""
        self._add(inputs, key, value.mean, value.precision, value.prior)

    def _add(self, inputs: Inputs, key: str, mean: Tensor, precision: Tensor | None, prior: float) -> None:
        dtype = next(p.mean[key].dtype for p in inputs.posteriors if key in p.mean)
        self.mean[key] = mean.to(dtype).contiguous()
        if precision is None or not self.total_examples:
            return
        low = _SMALLEST_SHARE * prior if prior > 0 else torch.finfo(torch.float32).tiny
        hess = (precision.clamp_min(low) - prior) / self.total_examples
        self.hess[key] = hess.to(torch.float32).contiguous()
        self.weight_decay[key] = prior / self.total_examples


def assemble(
    inputs: Inputs, merged: MergedTensors, sources: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> Posterior:
    """The merged posterior.

    ``num_examples`` and ``ess`` are the sums over the inputs, so that the pooled temperature is sum N / sum ess; h is
    per example of the pooled data. In a merge of one lineage the ancestor's data are part of them, and its prior is the
    merge's.
    """
    configs = [dict(p.adapter_config) for p in inputs.posteriors]
    metas = [p.meta for p in inputs.posteriors]
    decays = set(merged.weight_decay.values())
    meta = PosteriorMeta(
        num_examples=pooled_examples(inputs),
        ess=_pooled_ess(inputs),
        weight_decay=decays.pop() if len(decays) == 1 else (merged.weight_decay or 0.0),
        loss_reduction=_common([m.loss_reduction for m in metas], "mean"),
        tokens_per_example=_common([m.tokens_per_example for m in metas], None),
        base_model=_base_model(inputs),
        gauge=_gauge(inputs, merged),
        labels=_common([m.labels for m in metas], None),
        seed=min(m.seed for m in metas),
        sources=[dict(s) for s in sources],
        notes=list(notes),
        **_lineage(inputs),
    )
    return Posterior(
        mean=dict(sorted(merged.mean.items())),
        hess=dict(sorted(merged.hess.items())),
        meta=meta,
        adapter_config=merged_config(configs, merged.ranks, merged.scales),
    )


def pooled_examples(inputs: Inputs) -> int:
    """Training examples behind a merge, those of a common ancestor once."""
    if inputs.ancestor is None:
        return sum(p.meta.num_examples for p in inputs.posteriors)
    own = sum(inputs.ancestor.own_examples(p) for p in inputs.posteriors)
    return inputs.ancestor.posterior.meta.num_examples + own


def _pooled_ess(inputs: Inputs) -> float:
    start = inputs.ancestor
    if start is None:
        return sum(mean_ess(p.meta) for p in inputs.posteriors)
    return mean_ess(start.posterior.meta) + sum(own_ess(start, p) for p in inputs.posteriors)


def own_ess(start: Ancestor, posterior: Posterior) -> float:
    """``ess`` of an adapter without the ancestor's, as :meth:`Ancestor.own_examples` counts examples."""
    if start.is_itself(posterior):
        return 0.0
    merged = bool(posterior.meta.ancestor.get("included"))
    return mean_ess(posterior.meta) - merged * mean_ess(start.posterior.meta)


def _lineage(inputs: Inputs) -> dict[str, Any]:
    """Fields of ``posterior.json`` that say what the merge's inputs went on from."""
    start = inputs.ancestor
    if start is None:
        return {}
    return {
        "prior": dict(start.posterior.meta.prior),
        "ancestor": {
            "folder": start.path,
            "sha256": start.sha256,
            "hess_sha256": start.hess_sha256,
            "included": True,
        },
    }


def mean_ess(meta: PosteriorMeta) -> float:
    """``ess`` of a posterior as one number; the mean over tensors where it differs between them."""
    if isinstance(meta.ess, Mapping):
        return sum(meta.ess.values()) / max(1, len(meta.ess))
    return float(meta.ess)


def merged_curvature(updates: Sequence[LoraUpdate], weights: Sequence[float], stem: str) -> dict[str, Tensor]:
    """Grams of a merged module, so that it can be merged again: the weighted mean of the inputs' unit Grams.

    Empty where an adapter has none, or a weight is negative.
    """
    merged = {}
    for name in ("input_gram", "output_gram", "activation_gram"):
        grams = [getattr(u, name) for u in updates]
        if any(gram is None for gram in grams) or min(weights) < 0:
            continue
        factors = [
            unit_factor(gram, f"{u.adapter!r} in {stem}") for gram, u in zip(grams, updates, strict=True)
        ]
        total, _ = total_curvature(grams, factors, [w / sum(weights) for w in weights], 0.0)
        merged |= _stored(f"{stem}.{name}", total)
    return merged


def _stored(key: str, total: DenseTotal | SpanTotal) -> dict[str, Tensor]:
    """A mean of whole Grams as a whole one, of short ones as a short one with the directions of all."""
    if isinstance(total, DenseTotal):
        matrix = total.matrix
        return {key: ((matrix + matrix.mT) / 2).to(torch.float32)}
    short = total.short().to(torch.float32)
    return {
        f"{key}.vectors": short.vectors.contiguous(),
        f"{key}.values": short.values,
        f"{key}.tail": torch.tensor([short.tail], dtype=torch.float32),
    }


def _base_model(inputs: Inputs) -> dict[str, Any]:
    """The most complete description of the common base model."""
    described = [p.meta.base_model for p in inputs.posteriors]
    best = max(described, key=lambda d: sum(value is not None for value in d.values()))
    return dict(best)


def _gauge(inputs: Inputs, merged: MergedTensors) -> str | None:
    """The inputs' gauge, if they have one and the merge kept their A."""
    first = inputs.posteriors[0]
    kept = all(
        keys.a in first.mean and torch.equal(first.mean[keys.a], merged.mean[keys.a])
        for keys in (inputs.keys_of(module) for module in inputs.modules)
    )
    return _common([p.meta.gauge for p in inputs.posteriors], None) if kept else None


def _common(values: Sequence[Any], otherwise: Any) -> Any:
    return values[0] if all(value == values[0] for value in values) else otherwise
