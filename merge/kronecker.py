"""Gradient matching with full input Grams, in closed form and without any m x n matrix.

With the curvature of adapter t modelled as H_t = I (x) G_t (G: gradient-weighted Gram of the module's inputs) and an
isotropic prior H_0 = tau I, gradient matching (Daheim et al. 2024, arXiv:2310.12808) reads, for W_t = s_t B_t A_t,

    X (tau I + sum_t w_t G_t) = sum_t w_t W_t (tau I + G_t)
    X = sum_t (w_t s_t B_t) A_t',      A_t' = A_t (G_t + tau I) (tau I + sum_t w_t G_t)^-1

so B stays as it is and the concatenation is exact. This is RegMean (Jin et al. 2023, arXiv:2212.09849) with gradient
weights and a prior. Deviation: each G is scaled to mean diagonal 1 per adapter and module, because on the raw scale a
better fitted adapter (smaller gradients) is outvoted. The output Gram S enters the recompression only:
SVD of S^1/2 X G^1/2.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.low_rank import concatenate
from vlora.merge.positive import cholesky, subtract_clamped
from vlora.merge.update import LoraUpdate

__all__ = [
    "kronecker_merge",
    "kronecker_solution",
    "metric_root",
    "normalised_gram",
    "total_gram",
    "total_metric",
    "unit_factor",
]


def normalised_gram(gram: Tensor, where: str) -> Tensor:
    """A symmetric copy of a Gram matrix with mean diagonal 1 (trace n); zeros (no gradient came here) stay zeros.

    Args:
        gram: Shape ``(n, n)``.
        where: Adapter and module, for the message.

    Raises:
        IncompatibleAdaptersError: The matrix is not square, not finite, or has a negative trace.
    """
    factor = unit_factor(gram, where)
    return (gram + gram.mT).mul_(0.5 * factor)


def total_gram(grams: Sequence[Tensor], weights: Sequence[float], tau: float) -> tuple[Tensor, float]:
    """Sum ``tau I + sum_t w_t G_t``, kept positive definite when weights are negative.

    Returns:
        The matrix, shape ``(n, n)``, and the share of clamped directions.
    """
    positive = tau * torch.eye(grams[0].shape[0], dtype=grams[0].dtype, device=grams[0].device)
    negative = torch.zeros_like(positive)
    for weight, gram in zip(weights, grams, strict=True):
        if weight > 0:
            positive = positive + weight * gram
        else:
            negative = negative - weight * gram
    return subtract_clamped(positive, negative)


def kronecker_merge(
    updates: Sequence[LoraUpdate], weights: Sequence[float], tau: float
) -> tuple[LoraUpdate, float]:
    """Lossless merge of updates that carry an input Gram.

    The posterior is carried over as by :func:`vlora.merge.low_rank.concatenate`; under A' = A M the variance of an
    entry is sum_j' Var(A[k,j']) M[j',j]^2 (marginals are kept, correlations between columns are not).

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
    updates: Sequence[LoraUpdate], weights: Sequence[float], tau: float
) -> tuple[LoraUpdate, float, Tensor]:
    """As :func:`kronecker_merge`, with the total Gram as third: the metric of a recompression.

    At 4096 inputs a matrix takes 128 MiB and one pass over it tens of milliseconds, so that no Gram is copied: they are
    added, scaled, into one total, which is factorised once.
    """
    factors = [_factor(u) for u in updates]
    grams = [_given(u) for u in updates]
    total, clamped = _total(grams, factors, weights, tau)
    root = cholesky(total, updates[0].module)
    pulled = [
        (g @ u.a.mT).mul_(f).add_(u.a.mT, alpha=tau) for u, g, f in zip(updates, grams, factors, strict=True)
    ]
    solved = torch.cholesky_solve(torch.cat(pulled, dim=1), root).split([u.rank for u in updates], dim=1)
    moved = [
        replace(u, a=a.mT)
        if u.precision_a is None
        else _with_variance(u, u.precision_a, a.mT, g, f, tau, root)
        for u, a, g, f in zip(updates, solved, grams, factors, strict=True)
    ]
    return concatenate(moved, weights), clamped, total


def metric_root(grams: Sequence[Tensor | None], weights: Sequence[float], tau: float) -> Tensor | None:
    """Cholesky factor of the total Gram, the metric of a recompression; None when a Gram is missing."""
    total = total_metric(grams, weights, tau)
    return None if total is None else cholesky(total, "a module")


def total_metric(grams: Sequence[Tensor | None], weights: Sequence[float], tau: float) -> Tensor | None:
    """The total of unit Grams, the metric of a recompression; None when a Gram is missing."""
    present = [gram for gram in grams if gram is not None]
    if len(present) < len(grams):
        return None
    return _total(present, [unit_factor(gram, "an adapter") for gram in present], weights, tau)[0]


def _total(
    grams: Sequence[Tensor], factors: Sequence[float], weights: Sequence[float], tau: float
) -> tuple[Tensor, float]:
    """:func:`total_gram` of ``factor * gram``, without a copy of any of them where no weight is negative."""
    if min(weights) < 0:
        units = [normalised_gram(gram, "an adapter") for gram in grams]
        return total_gram(units, weights, tau)
    total = torch.zeros_like(grams[0])
    for gram, factor, weight in zip(grams, factors, weights, strict=True):
        total.add_(gram, alpha=weight * factor)
    total.diagonal().add_(tau)
    return total, 0.0


def _with_variance(
    update: LoraUpdate, precision: Tensor, a: Tensor, gram: Tensor, factor: float, tau: float, root: Tensor
) -> LoraUpdate:
    """A' with the variance of a stochastic A, which alone needs the n x n matrix (G + tau I) total^-1."""
    damped = factor * gram
    damped.diagonal().add_(tau)
    mixing = torch.cholesky_solve(damped, root).mT
    moved = 1.0 / (precision.reciprocal() @ mixing.square())
    return replace(update, a=a, precision_a=moved, prior_a=min(update.prior_a, moved.min().item()))


def _given(update: LoraUpdate) -> Tensor:
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


def unit_factor(gram: Tensor, where: str) -> float:
    """1 / mean diagonal of a checked Gram; 1 for zeros. NaN and infinity show in the sum of all entries."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise IncompatibleAdaptersError(
            f"curvature of {where} should be a square matrix, got shape {tuple(gram.shape)}; gather it again"
        )
    mean = gram.diagonal().mean().item()
    if not math.isfinite(gram.sum().item()) or mean < 0:
        raise IncompatibleAdaptersError(f"curvature of {where} is not finite and positive; gather it again")
    return 1.0 / mean if mean > 0 else 1.0
