"""Fully trained tensors beside LoRA: heads, biases and embeddings saved whole (``modules_to_save``, ``bias``).

They are weights, not updates of weights, so a sum of them has no meaning without the base weights; every method takes
their mean over the adapters that have them, weights normalised. With h at hand and ``precision`` asked for:

    m = sum_t w_t S_t o m_t / sum_t w_t S_t,      S' = H_0 + sum_t w_t (S_t - H_0)

which is Fisher-weighted averaging (Matena and Raffel 2022, arXiv:2111.09832) with the posterior precision
S = N (h + delta). In a merge of one lineage they are parameters like the factors, and their sites add.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.curvature.positive import check_definite
from vlora.merge.methods.lineage import add_sites, reflected
from vlora.merge.methods.linear import normalised

__all__ = ["FullTensor", "merge_full", "merge_full_lineage"]


@dataclass(frozen=True)
class FullTensor:
    """One adapter's copy of a fully trained tensor."""

    mean: Tensor
    precision: Tensor | None = None
    """N (h + delta), the shape of ``mean``; None if it is deterministic."""
    prior: float = 0.0
    """N delta."""
    adapter: str = "adapter"
    key: str = "tensor"
    ancestor: "FullTensor | None" = None
    """What it was before, in a merge of one lineage; ``precision`` is then that of the adapter's own data."""


def merge_full_lineage(
    values: Sequence[FullTensor], weights: Sequence[float], *, negate: bool = False, removing: bool = False
) -> FullTensor:
    """Sum of one tensor's sites over the runs of one ancestor; see :mod:`vlora.merge.methods.lineage`.

    Args:
        values: One per run, relative to the same ancestor.
        weights: w_t per run.
        negate: Whether a negative weight stands for the run's negative.
        removing: As for :func:`vlora.merge.methods.lineage.add_sites`.

    Raises:
        IncompatibleAdaptersError: Negative weights outweigh all evidence in most of the tensor.
    """
    start = values[0].ancestor
    if start is None:
        raise ValueError(f"{values[0].key} has no ancestor")
    if start.precision is None:
        return start
    terms = [(w, _known(v), v.mean) for w, v in zip(weights, values, strict=True)]
    if negate:
        terms = [reflected(*term, start.mean) for term in terms]
    mean, precision, clamped = add_sites(start.mean, start.precision, terms, removing=removing)
    check_definite(start.key, clamped)
    return FullTensor(mean, precision, start.prior, "merged", start.key)


def merge_full(values: Sequence[FullTensor], weights: Sequence[float], rule: str) -> FullTensor:
    """Mean of one tensor over the adapters that have it.

    Args:
        values: One per adapter that has the tensor.
        weights: w_t >= 0 per adapter.
        rule: ``mean`` or ``precision``.

    Returns:
        The merged tensor; its precision is that of the mean of independent draws (``mean``) or of the pooled data.

    Raises:
        IncompatibleAdaptersError: Shapes differ, or a weight is negative although the tensors differ.
    """
    first = values[0]
    equal = True
    for value in values[1:]:
        if value.mean.shape != first.mean.shape:
            raise IncompatibleAdaptersError(
                f"{first.key} has shape {tuple(first.mean.shape)} in {first.adapter!r} and "
                f"{tuple(value.mean.shape)} in {value.adapter!r}; were they trained for the same labels?"
            )
        equal = equal and torch.equal(value.mean, first.mean)
    if min(weights) < 0 and not equal:
        raise IncompatibleAdaptersError(
            f"{first.key} was trained whole and differs between the adapters, and a negative weight has no meaning "
            "for a mean; merge adapters without modules_to_save and trained biases"
        )
    certain = all(v.precision is not None for v in values) and min(weights) >= 0
    if not certain:
        return FullTensor(first.mean if equal else _mean(values, weights), None, 0.0, "merged", first.key)
    merged = _by_precision(values, weights) if rule == "precision" else _by_weight(values, weights)
    return FullTensor(
        first.mean if equal else merged.mean, merged.precision, merged.prior, "merged", first.key
    )


def _mean(values: Sequence[FullTensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([w * v.mean for w, v in zip(normalised(weights), values, strict=True)]).sum(0)


def _by_weight(values: Sequence[FullTensor], weights: Sequence[float]) -> FullTensor:
    shares = normalised(weights)
    variance = torch.stack([w * w / _known(v) for w, v in zip(shares, values, strict=True)]).sum(0)
    prior = 0.0
    if all(v.prior > 0 for v in values):
        prior = 1.0 / sum(w * w / v.prior for w, v in zip(shares, values, strict=True))
    return FullTensor(_mean(values, weights), variance.reciprocal(), prior)


def _by_precision(values: Sequence[FullTensor], weights: Sequence[float]) -> FullTensor:
    pairs = list(zip(weights, values, strict=True))
    total = torch.stack([w * _known(v) for w, v in pairs]).sum(0)
    mean = torch.stack([w * _known(v) * v.mean for w, v in pairs]).sum(0) / total
    prior = sum(w * v.prior for w, v in pairs) / sum(weights)
    sites = torch.stack([w * (_known(v) - v.prior).clamp_min(0) for w, v in pairs]).sum(0)
    return FullTensor(mean, prior + sites, prior)


def _known(value: FullTensor) -> Tensor:
    if value.precision is None:
        raise ValueError(f"{value.key} of {value.adapter!r} has no precision")
    return value.precision
