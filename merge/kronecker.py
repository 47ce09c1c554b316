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

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.low_rank import concatenate
from vlora.merge.positive import cholesky, subtract_clamped
from vlora.merge.update import LoraUpdate

__all__ = ["kronecker_merge", "metric_root", "normalised_gram", "total_gram"]


def normalised_gram(gram: Tensor, where: str) -> Tensor:
    """A symmetric copy of a Gram matrix with mean diagonal 1 (trace n); zeros (no gradient came here) stay zeros.

    Args:
        gram: Shape ``(n, n)``.
        where: Adapter and module, for the message.

    Raises:
        IncompatibleAdaptersError: The matrix is not square, not finite, or has a negative trace.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise IncompatibleAdaptersError(
            f"curvature of {where} should be a square matrix, got shape {tuple(gram.shape)}; gather it again"
        )
    mean = gram.diagonal().mean()
    if not torch.isfinite(gram).all() or mean < 0:
        raise IncompatibleAdaptersError(f"curvature of {where} is not finite and positive; gather it again")
    return 0.5 * (gram + gram.mT) / (mean if mean > 0 else 1.0)


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
    grams = [_gram(u) for u in updates]
    total, clamped = total_gram(grams, weights, tau)
    root = cholesky(total, updates[0].module)
    moved = [_moved(u, gram, tau, root) for u, gram in zip(updates, grams, strict=True)]
    return concatenate(moved, weights), clamped


def metric_root(grams: Sequence[Tensor | None], weights: Sequence[float], tau: float) -> Tensor | None:
    """Cholesky factor of the total Gram, the metric of a recompression; None when a Gram is missing."""
    present = [gram for gram in grams if gram is not None]
    if len(present) < len(grams):
        return None
    normalised = [normalised_gram(gram, "an adapter") for gram in present]
    return cholesky(total_gram(normalised, weights, tau)[0], "a module")


def _moved(update: LoraUpdate, gram: Tensor, tau: float, root: Tensor) -> LoraUpdate:
    """A' = A (G + tau I) total^-1; the n x n mixing matrix is only needed for the variance of a stochastic A."""
    damped = gram + tau * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    if update.precision_a is None:
        return replace(update, a=torch.cholesky_solve(damped @ update.a.mT, root).mT)
    mixing = torch.cholesky_solve(damped, root).mT
    precision = 1.0 / (update.precision_a.reciprocal() @ mixing.square())
    prior = min(update.prior_a, precision.min().item())
    return replace(update, a=update.a @ mixing, precision_a=precision, prior_a=prior)


def _gram(update: LoraUpdate) -> Tensor:
    if update.input_gram is None:
        raise IncompatibleAdaptersError(
            f"curvature: kronecker needs the input Gram of every adapter, but {update.adapter!r} has none for "
            f"{update.module}; gather curvature for it, or set curvature: auto"
        )
    gram = normalised_gram(update.input_gram, f"{update.adapter!r} in {update.module}")
    if gram.shape[0] != update.a.shape[1]:
        raise IncompatibleAdaptersError(
            f"curvature of {update.adapter!r} in {update.module} has {gram.shape[0]} inputs, its A has "
            f"{update.a.shape[1]}; the file belongs to another adapter"
        )
    return gram
