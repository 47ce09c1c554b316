r"""Kernel language entropy: the von Neumann entropy of a similarity kernel over answers.

    W_ij = (e_ij + n_ij / 2) + (e_ji + n_ji / 2),  W_ii = 0      graph of entailments e and neutrals n
    L    = D - W,  D = diag(sum_j W_ij)
    heat    K = exp(-t L)
    Matern  K = (2 nu / kappa^2 I + L)^(-nu)
    K'   = diag(K)^(-1/2) K diag(K)^(-1/2) / M        unit trace
    VNE  = -tr K' log K'

Source: Nikitin et al. 2024, arXiv:2405.20003. L is symmetric, so one eigendecomposition does all. The entropy is that
of hard clusters where W is block-diagonal and t goes to infinity.
"""

from typing import Any, Literal

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, numbers
from vlora.eval.semantic.clusters import CONTRADICTION, relation_array

__all__ = [
    "entailment_weights",
    "graph_kernel",
    "kernel_language_entropy",
    "similarity_weights",
    "von_neumann_entropy",
]

HEAT_TIME = 0.3
MATERN = (1.0, 1.0)


def entailment_weights(relations: Any) -> Array:
    """Weights of the graph of answers, ``W = X + X^T`` with ``X = entailment + neutral / 2``, zero diagonal.

    Args:
        relations: p(entailment, neutral, contradiction) of "i implies j", shape ``(M, M, 3)``.

    Returns:
        Symmetric weights in [0, 2], shape ``(M, M)``.

    Raises:
        DataError: Relations of a wrong shape or not probabilities.
    """
    relations = relation_array(relations)
    one_way = relations[:, :, 0] + (1 - relations[:, :, 0] - relations[:, :, CONTRADICTION]) / 2
    return _without_loops(one_way + one_way.T)


def similarity_weights(similarity: Any) -> Array:
    """Weights from a similarity in [0, 1] such as token F1: ``W = S + S^T``, zero diagonal.

    Raises:
        DataError: Not a square array of values in [0, 1].
    """
    array = numbers("similarities", similarity)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise DataError(f"similarities must be a square array, got shape {array.shape}")
    if np.isnan(array).any() or array.min() < 0 or array.max() > 1:
        raise DataError("similarities must lie in [0, 1]")
    return _without_loops(array + array.T)


def _without_loops(weights: Array) -> Array:
    np.fill_diagonal(weights, 0.0)
    return np.maximum(weights, 0.0)


def graph_kernel(
    weights: Any,
    kind: Literal["heat", "matern"] = "heat",
    *,
    time: float = HEAT_TIME,
    smoothness: float = MATERN[0],
    scale: float = MATERN[1],
) -> Array:
    """Kernel of a graph from its Laplacian, of unit trace and equal diagonal.

    Args:
        weights: Symmetric, non-negative, shape ``(M, M)``; the diagonal is not read.
        kind: ``heat``, exp(-time L), or ``matern``, (2 smoothness / scale^2 + L)^(-smoothness).
        time: t of the heat kernel, > 0; longer joins more.
        smoothness: nu of the Matern kernel, > 0.
        scale: kappa of the Matern kernel, > 0.

    Returns:
        Positive semi-definite, shape ``(M, M)``.

    Raises:
        DataError: Weights that are no symmetric graph, or a parameter that is not positive.
    """
    weights = numbers("weights", weights).copy()
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not np.allclose(weights, weights.T):
        raise DataError(f"graph weights must be a symmetric square array, got shape {weights.shape}")
    if min(time, smoothness, scale) <= 0 or weights.min() < 0:
        raise DataError("graph weights must be >= 0 and kernel parameters > 0")
    np.fill_diagonal(weights, 0.0)
    values, vectors = np.linalg.eigh(np.diag(weights.sum(axis=1)) - weights)
    values = np.maximum(values, 0.0)
    spectrum = (
        np.exp(-time * values) if kind == "heat" else (2 * smoothness / scale**2 + values) ** (-smoothness)
    )
    kernel = (vectors * spectrum) @ vectors.T
    width = np.sqrt(np.diag(kernel))
    return kernel / np.outer(width, width) / len(kernel)


def von_neumann_entropy(kernel: Any) -> float:
    """``-tr K log K`` of a symmetric kernel of unit trace, from its eigenvalues.

    Returns:
        Nats in [0, log M]; higher is less certain.

    Raises:
        DataError: The kernel is not symmetric, positive semi-definite and of unit trace.
    """
    kernel = numbers("kernel", kernel)
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not np.allclose(kernel, kernel.T):
        raise DataError(f"a kernel must be a symmetric square array, got shape {kernel.shape}")
    values = np.linalg.eigvalsh(kernel)
    if values.min() < -1e-9 or abs(values.sum() - 1) > 1e-6:
        raise DataError(
            f"a kernel must be positive semi-definite of trace 1, got trace {values.sum():.4g}, "
            f"smallest eigenvalue {values.min():.3g}"
        )
    positive = values[values > 0]
    return float(max(-(positive * np.log(positive)).sum(), 0.0))


def kernel_language_entropy(
    weights: Any, kind: Literal["heat", "matern"] = "heat", *, scaled: bool = False, **parameters: float
) -> float:
    """Kernel language entropy of the answers behind a graph.

    Args:
        weights: From :func:`entailment_weights` or :func:`similarity_weights`, one node per *sampled* answer.
        kind: Kernel.
        scaled: Divide by log M, so that numbers of different M compare.
        **parameters: Of :func:`graph_kernel`.

    Returns:
        Nats in [0, log M], or [0, 1] when scaled; higher is less certain.

    Raises:
        DataError: As for :func:`graph_kernel`.
    """
    kernel = graph_kernel(weights, kind, **parameters)
    entropy = von_neumann_entropy(kernel)
    return entropy / np.log(len(kernel)) if scaled and len(kernel) > 1 else entropy
