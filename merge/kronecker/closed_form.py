"""Gradient matching with full input Grams, in closed form and without any m x n matrix.

With the curvature of adapter t modelled as H_t = I (x) G_t (G: gradient-weighted Gram of the module's inputs) and an
isotropic prior H_0 = tau I, gradient matching (Daheim et al. 2024, arXiv:2310.12808) reads, for W_t = s_t B_t A_t,

    X (tau I + sum_t w_t G_t) = sum_t w_t W_t (tau I + G_t)
    X = sum_t (w_t s_t B_t) A_t',      A_t' = A_t (G_t + tau I) (tau I + sum_t w_t G_t)^-1

so B stays as it is and the concatenation is exact. This is RegMean (Jin et al. 2023, arXiv:2212.09849) with gradient
weights and a prior. Deviation: each G is scaled to mean diagonal 1 per adapter and module, because on the raw scale a
better fitted adapter (smaller gradients) is outvoted. The output Gram S enters the recompression only:
SVD of S^1/2 X G^1/2.

What the base model is to keep, with the Gram P of its own inputs and the weight w (``keep``), is one more task whose
update is zero: w P stands in the total beside tau I, and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram, dense, product
from vlora.merge.curvature.kept import Kept, total_with
from vlora.merge.curvature.summed import SummedMetric
from vlora.merge.curvature.total import DenseTotal, SpanTotal, Total, total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.low_rank.algebra import concatenate
from vlora.merge.update import LoraUpdate

__all__ = [
    "damped",
    "kronecker_merge",
    "kronecker_rows",
    "kronecker_solution",
    "metric_root",
    "passing_metric",
    "total_metric",
]


def kronecker_merge(
    updates: Sequence[LoraUpdate], weights: Sequence[float], tau: float
) -> tuple[LoraUpdate, float]:
    """Lossless merge of updates that carry an input Gram.

    The posterior is carried over as by :func:`vlora.merge.low_rank.algebra.concatenate`; under A' = A M the variance of
    an entry is sum_j' Var(A[k,j']) M[j',j]^2 (marginals are kept, correlations between columns are not).

    Args:
        updates: Updates of one module, each with ``input_gram``.
        weights: w_t per update.
        tau: Prior precision relative to the mean diagonal of a Gram, > 0.

    Returns:
        An update of rank sum r_t, and the share of clamped directions of the total Gram.
    """
    merged, clamped, _ = kronecker_solution(updates, weights, tau)
    return merged, clamped


def kronecker_solution(
    updates: Sequence[LoraUpdate], weights: Sequence[float], tau: float, keep: Kept | None = None
) -> tuple[LoraUpdate, float, Total]:
    """As :func:`kronecker_merge`, with the total curvature as third: the metric of a recompression.

    Only the sum r_t rows of the updates are solved for. At 4096 inputs a whole matrix takes 128 MiB and one pass over
    it tens of milliseconds, so that no Gram is copied; short Grams are never written out
    (:mod:`vlora.merge.curvature.total`).
    """
    factors = [_factor(u) for u in updates]
    grams = [_given(u) for u in updates]
    total, clamped = total_with(keep, grams, factors, weights, tau, updates[0].module)
    pulled = [damped(u.a, g, f, tau) for u, g, f in zip(updates, grams, factors, strict=True)]
    solved = total.solve(torch.cat(pulled)).split([u.rank for u in updates])
    moved = [
        replace(u, a=a) if u.precision_a is None else _with_variance(u, u.precision_a, a, g, f, tau, total)
        for u, a, g, f in zip(updates, solved, grams, factors, strict=True)
    ]
    return concatenate(moved, weights), clamped, total


def kronecker_rows(
    rows: Sequence[Tensor],
    grams: Sequence[Gram],
    factors: Sequence[float],
    weights: Sequence[float],
    tau: float,
    total: Total,
) -> Tensor:
    """The same closed form for rows of dense updates: sum_t w_t D_t (f_t G_t + tau I) T^-1; every row is on its own.

    Args:
        rows: D_t, rows of the updates, shape ``(r, n)``.
        grams: G_t.
        factors: f_t, see :func:`vlora.merge.curvature.unit.unit_factor`.
        weights: w_t.
        tau: Prior precision.
        total: T = tau I + sum_t w_t f_t G_t.
    """
    pulled = torch.zeros_like(rows[0])
    for delta, gram, factor, weight in zip(rows, grams, factors, weights, strict=True):
        pulled.add_(damped(delta, gram, factor, tau), alpha=weight)
    return total.solve(pulled)


def damped(rows: Tensor, gram: Gram, factor: float, tau: float) -> Tensor:
    """R (f G + tau I) for rows R of shape ``(r, n)``."""
    return product(rows, gram).mul_(factor).add_(rows, alpha=tau)


def metric_root(grams: Sequence[Gram | None], weights: Sequence[float], tau: float) -> Tensor | None:
    """Cholesky factor of the total Gram, the metric of a recompression; None when a Gram is missing."""
    whole = [None if gram is None else dense(gram) for gram in grams]
    total = total_metric(whole, weights, tau)
    return total.factor if isinstance(total, DenseTotal) else None


def passing_metric(
    grams: Sequence[Gram | None], weights: Sequence[float], tau: float
) -> SummedMetric | DenseTotal | SpanTotal | None:
    """As :func:`total_metric`, for a product or two: whole Grams of positive weights are not added up beforehand."""
    whole = [gram for gram in grams if isinstance(gram, Tensor)]
    if len(whole) < len(grams) or min(weights) < 0:
        return total_metric(grams, weights, tau)
    scaled = [w * unit_factor(gram, "an adapter") for w, gram in zip(weights, whole, strict=True)]
    return SummedMetric(whole, scaled, tau)


def total_metric(
    grams: Sequence[Gram | None], weights: Sequence[float], tau: float
) -> DenseTotal | SpanTotal | None:
    """The total of unit Grams, the metric of a recompression; None when a Gram is missing."""
    present = [gram for gram in grams if gram is not None]
    if len(present) < len(grams):
        return None
    return total_curvature(present, [unit_factor(gram, "an adapter") for gram in present], weights, tau)[0]


def _with_variance(
    update: LoraUpdate, precision: Tensor, a: Tensor, gram: Gram, factor: float, tau: float, total: Total
) -> LoraUpdate:
    """A' with the variance of a stochastic A, which alone needs all n rows of (G + tau I) total^-1."""
    moved = 1.0 / total.spread(precision.reciprocal(), gram, factor, tau)
    return replace(update, a=a, precision_a=moved, prior_a=min(update.prior_a, moved.min().item()))


def _given(update: LoraUpdate) -> Gram:
    """The input Gram as it is stored."""
    if update.input_gram is None:
        raise IncompatibleAdaptersError(
            f"curvature: kronecker needs the input Gram of every adapter, but {update.adapter!r} has none for "
            f"{update.module}; gather curvature for it, or set curvature: auto"
        )
    return update.input_gram


def _factor(update: LoraUpdate) -> float:
    """What the input Gram is multiplied with to have mean diagonal 1; the Gram is checked on the way."""
    gram = _given(update)
    factor = unit_factor(gram, f"{update.adapter!r} in {update.module}")
    if gram.shape[0] != update.a.shape[1]:
        raise IncompatibleAdaptersError(
            f"curvature of {update.adapter!r} in {update.module} has {gram.shape[0]} inputs, its A has "
            f"{update.a.shape[1]}; the file belongs to another adapter"
        )
    return factor
