"""Merging runs that went on from one posterior, the ancestor: natural parameters of A, B and heads add, entry by entry.

With the ancestor q_0 = N(m_0, 1 / S_0), S_0 = N_0 (h_0 + delta_0), as the common prior and H_t = N_t h_t the curvature
of each run's own data, S_t = S_0 + H_t,

    S' = S_0 + sum_t w_t (S_t - S_0),      S' m' = S_0 m_0 + sum_t w_t (S_t m_t - S_0 m_0)

or, which is the same and is what is computed, m' = m_0 + S'^-1 sum_t w_t S_t (m_t - m_0): Daheim et al. 2024
(arXiv:2310.12808) with theta_0 = m_0 and H_0 = S_0. A run's own prior of mean zero is not added again. Adding is
associative and commutative, and a site that was added can be subtracted.

Exact where losses are quadratic with diagonal Hessians and each m_t minimises N_t l_t + 1/2 |m - m_0|^2_{S_0}.
Approximate otherwise: a run that was not pulled towards m_0 has gone further than that minimiser, and B A is a product,
so that the sum holds near the ancestor only. All precisions are untempered.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.merge.curvature.positive import PRECISION_FLOOR, add_clamped
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["FAR", "SMALLEST_SHARE", "add_sites", "distance_from_ancestor", "merge_lineage", "reflected"]

FAR = 0.5
"""|A_t - A_0| / |A_0| from which on a merge warns that the gauge may no longer be the ancestor's.

Runs of ``benchmarks/merge_quality`` went .07 to .52, and there a mean of factors still was level with the best sum of
updates; independent starts of one size are 1.4 apart.
"""
SMALLEST_SHARE = 1e-3
"""Of S_0, below which no precision falls when a contributor is taken out."""

Term = tuple[float, Tensor, Tensor]
"""Weight w_t, own curvature H_t, mean m_t."""


def add_sites(
    mean: Tensor, precision: Tensor, terms: Sequence[Term], *, removing: bool = False
) -> tuple[Tensor, Tensor, float]:
    """Ancestor times the sites of all runs to the power of their weights, for one tensor.

    Args:
        mean: m_0 of the ancestor, any shape.
        precision: S_0, untempered, same shape.
        terms: w_t, H_t = S_t - S_0 and m_t, same shapes; in examples / weight^2.
        removing: Whether what has a negative weight is known to be in the sum, so that the rest needs no clamp but
            against rounding, at :data:`SMALLEST_SHARE` of S_0.

    Returns:
        m', S', and the share of entries whose precision had to be kept positive.
    """
    positive, negative = precision.clone(), torch.zeros_like(precision)
    moved = torch.zeros_like(mean)
    for weight, own, value in terms:
        positive += (weight * own).clamp_min(0)
        negative += (weight * own).clamp_max(0)
        moved = moved + weight * (precision + own) * (value - mean)
    floor = SMALLEST_SHARE * precision / positive if removing else PRECISION_FLOOR
    total, clamped = add_clamped(positive, negative, floor)  # pyright: ignore[reportArgumentType]
    return mean + moved / total, total, clamped


def reflected(weight: float, own: Tensor, value: Tensor, start: Tensor) -> Term:
    """The negative of a run, 2 m_0 - m_t with weight |w|, where the weight is negative (``negative: negate``)."""
    return (-weight, own, 2 * start - value) if weight < 0 else (weight, own, value)


def merge_lineage(
    updates: Sequence[LoraUpdate], weights: Sequence[float], *, negate: bool = False, removing: bool = False
) -> MergedModule:
    """Sum of the runs of one ancestor in one module; rank, scaling and gauge stay the ancestor's.

    Args:
        updates: Updates that have ``ancestor``, one for all; their precisions are H_t.
        weights: w_t per update.
        negate: What a negative weight means: the run's negative, or (the default) its data taken out of the sum.
        removing: As for :func:`add_sites`.
    """
    start = updates[0].ancestor
    if start is None:
        raise ValueError(f"{updates[0].adapter!r} has no ancestor in {updates[0].module}")
    b, precision_b, clamped_b = _side(start, updates, weights, "b", negate, removing)
    a, precision_a, clamped_a = _side(start, updates, weights, "a", negate, removing)
    merged = replace(
        start, b=b, a=a, precision_b=precision_b, precision_a=precision_a, adapter="merged",
        input_gram=None, output_gram=None, activation_gram=None,
    )  # fmt: skip
    return MergedModule(
        merged,
        {
            "curvature": "sites",
            "exact": True,
            "retained_energy": 1.0,
            "clamped_fraction": max(clamped_b, clamped_a),
            "from_ancestor": {u.adapter: distance_from_ancestor(u) for u in updates},
        },
    )


def distance_from_ancestor(update: LoraUpdate) -> float:
    """|A_t - A_0| / |A_0| in the Frobenius norm: 0 for a frozen A, 1.4 for an independent one of that size."""
    start = update.ancestor
    if start is None:
        raise ValueError(f"{update.adapter!r} has no ancestor in {update.module}")
    size = start.a.norm().item()
    return (update.a - start.a).norm().item() / size if size > 0 else 0.0


def _side(
    start: LoraUpdate,
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    side: str,
    negate: bool,
    removing: bool,
) -> tuple[Tensor, Tensor | None, float]:
    """One factor; a deterministic one was frozen in all runs, and stays."""
    mean, precision = getattr(start, side), getattr(start, f"precision_{side}")
    if precision is None:
        return mean, None, 0.0
    terms = [
        (w, getattr(u, f"precision_{side}"), getattr(u, side)) for u, w in zip(updates, weights, strict=True)
    ]
    if negate:
        terms = [reflected(*term, mean) for term in terms]
    return add_sites(mean, precision, terms, removing=removing)
