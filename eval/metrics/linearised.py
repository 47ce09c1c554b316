r"""The linearised predictive: a Gaussian over K logits, pushed through the softmax.

To first order in the parameters, ``theta ~ N(m, Sigma)`` gives logits ``z ~ N(f(m), J Sigma J^T)``, J the Jacobian at
m. Exact where the logits are linear in the stochastic parameters, as for a classifier head alone. The expectation over
z is taken by antithetic normal draws that are the same for all items; they cost nothing beside the model.

Source: Khan et al. 2019 (arXiv:1906.01930), Immer et al. 2021 (arXiv:2008.08400).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, numbers
from vlora.eval.metrics.uncertainty import expected_entropy, mixture_log_probs, mutual_information

__all__ = ["SoftmaxMoments", "logit_variance", "softmax_mean", "softmax_moments"]

_PAIRS = 512
_ITEMS = 256  # items at a time, which bounds the memory


@dataclass(frozen=True)
class SoftmaxMoments:
    """What follows from Gaussian logits, item by item.

    Attributes:
        log_probs: ``log E[softmax(z)]``, ``(N, K)``.
        expected_entropy: ``E[H(softmax(z))]`` in nats, ``(N,)``: the aleatoric part.
        mutual_information: ``H(E[softmax(z)]) - E[H(softmax(z))]`` in nats, ``(N,)``: the epistemic part.
    """

    log_probs: Array
    expected_entropy: Array
    mutual_information: Array


def softmax_moments(mean: Any, covariance: Any, *, num_pairs: int = _PAIRS, seed: int = 0) -> SoftmaxMoments:
    """Expectation of a softmax over Gaussian logits.

    Args:
        mean: Logits at the mean, up to a constant per item, ``(N, K)``; ``-inf`` for a choice an item does not have.
        covariance: Covariance of the logits, ``(N, K, K)``; rows and columns of absent choices are 0.
        num_pairs: Antithetic pairs of normal draws.
        seed: Seed of the draws.

    Raises:
        DataError: Shapes do not fit, or a covariance has a clearly negative eigenvalue.
    """
    parts = [
        (mixture_log_probs(s), expected_entropy(s), mutual_information(s, antithetic=True))
        for s in _samples(mean, covariance, num_pairs, seed)
    ]
    return SoftmaxMoments(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def logit_variance(covariance: Any, present: Any) -> Array:
    r"""Mean variance of the logits, apart from a shift that all of an item share.

    .. math:: v = \frac{1}{K - 1} \left( \mathrm{tr}\, C - \tfrac 1 K \mathbf 1^\top C \mathbf 1 \right)

    The information is about this times p (1 - p), so that a confident answer hides it.

    Args:
        covariance: Covariance of the logits, ``(N, K, K)``; rows and columns of absent choices are 0.
        present: Choices that an item has, ``(N, K)``, two at least.

    Returns:
        ``(N,)``, in nats^2; higher for less certain.
    """
    covariance, count = numbers("covariance", covariance), np.asarray(present).sum(axis=1)
    trace, total = np.trace(covariance, axis1=1, axis2=2), covariance.sum(axis=(1, 2))
    return (trace - total / count) / np.maximum(count - 1, 1)


def softmax_mean(mean: Any, covariance: Any, *, num_pairs: int = _PAIRS, seed: int = 0) -> Array:
    """``log E[softmax(z)]`` alone, ``(N, K)``: the first of the moments, at a third of their cost.

    Args:
        mean: As in :func:`softmax_moments`.
        covariance: As there.
        num_pairs: As there.
        seed: As there.

    Raises:
        DataError: As there.
    """
    return np.concatenate([mixture_log_probs(s) for s in _samples(mean, covariance, num_pairs, seed)])


def _samples(mean: Any, covariance: Any, num_pairs: int, seed: int) -> Iterator[Array]:
    """Log-softmax of draws of Gaussian logits, ``(2 * num_pairs, n, K)`` for some items at a time."""
    mean, covariance = numbers("mean", mean), numbers("covariance", covariance)
    if mean.ndim != 2 or covariance.shape != (*mean.shape, mean.shape[-1]):
        raise DataError(
            f"expected logits (N, K) and covariances (N, K, K), got {mean.shape}, {covariance.shape}"
        )
    noise = np.random.default_rng(seed).standard_normal((num_pairs, mean.shape[1]))
    noise = np.stack([noise, -noise], axis=1).reshape(-1, mean.shape[1])
    for i in range(0, len(mean), _ITEMS):
        yield _log_softmax(mean[i : i + _ITEMS], covariance[i : i + _ITEMS], noise)


def _log_softmax(mean: Array, covariance: Array, noise: Array) -> Array:
    """Draws of some items."""
    values, vectors = np.linalg.eigh(covariance)
    if (values[:, 0] < -1e-3 * np.maximum(values[:, -1], 1e-9)).any():
        raise DataError(f"a covariance of logits must not have negative eigenvalues, got {values.min():.3g}")
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
    logits = mean + np.einsum("nkl,sl->snk", root, noise)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
