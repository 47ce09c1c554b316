"""Proper scores of a probability vector, per item, in log space.

Notation: ``log_probs`` (N, K) is log p(k | x), ``label`` (N,) the index y of the right choice, p = exp(log_probs).
Sources: Brier 1950; Gneiting & Raftery 2007, doi:10.1198/016214506000001437.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, labels, normalised, numbers, same_length

__all__ = ["NegativeLogLikelihood", "brier_score", "correctness", "kl_to_truth", "negative_log_likelihood"]


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Negative log-likelihood of N labels, in nats; lower is better."""

    mean: float
    """Mean over all items; ``inf`` as soon as one label has probability zero."""
    num_infinite: int
    """Labels that were given probability zero."""
    finite_mean: float
    """Mean over the other items, NaN when there are none."""
    per_item: Array
    """-log p(y), shape ``(N,)``."""


def negative_log_likelihood(log_probs: Any, label: Any) -> NegativeLogLikelihood:
    """NLL = -(1/N) sum_i log p_i(y_i), never clipped: impossible labels are counted instead.

    For posterior draws pass the log of the *mean* probability (``mixture_log_probs``); the mean of the draws'
    NLL is another, larger number.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        The score with its parts.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    per_item = -log_probs[np.arange(len(label)), label] + 0.0  # + 0.0 turns -0.0 into 0.0
    finite = np.isfinite(per_item)
    finite_mean = float(per_item[finite].mean()) if finite.any() else float("nan")
    return NegativeLogLikelihood(float(per_item.mean()), int((~finite).sum()), finite_mean, per_item)


def brier_score(log_probs: Any, label: Any) -> Array:
    """Brier score per item, sum_k (p_k - 1[k = y])^2, in [0, 2]; lower is better.

    The sum over choices (Brier 1950) and not the mean or, for two choices, the half of it.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        Scores of shape ``(N,)``; their mean is the Brier score of the set.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    error = np.exp(log_probs)
    error[np.arange(len(label)), label] -= 1.0
    return np.square(error).sum(axis=1)


def correctness(log_probs: Any, label: Any) -> Array:
    """Chance that the most probable choice is the right one, ties being broken at random.

    It is 0 or 1 unless several choices share the maximum exactly; then a right choice among t of them counts 1/t,
    so that no order of the choices is favoured.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        Values in [0, 1] of shape ``(N,)``; their mean is the accuracy.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    top = log_probs == log_probs.max(axis=1, keepdims=True)
    return top[np.arange(len(label)), label] / top.sum(axis=1)


def kl_to_truth(label_probs: Any, log_probs: Any) -> Array:
    """KL(q || p) = sum_k q_k (log q_k - log p_k) per item, in nats, for a known answer distribution q.

    Args:
        label_probs: True probabilities q of shape ``(N, K)``, rows summing to one.
        log_probs: Log-probabilities of shape ``(N, K)``.

    Returns:
        Divergences >= 0 of shape ``(N,)``; ``inf`` where p is zero and q is not. Lower is better.

    Raises:
        DataError: Shapes differ, NaN, or rows of ``label_probs`` that do not sum to one.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    truth = numbers("label_probs", label_probs, "pad items that have fewer choices with 0")
    if np.isnan(truth).any():
        raise DataError(f"label_probs holds {int(np.isnan(truth).sum())} NaN of {truth.size} values")
    same_length(label_probs=truth, log_probs=log_probs)
    if (
        truth.shape != log_probs.shape
        or not np.allclose(truth.sum(axis=1), 1.0, atol=1e-6)
        or truth.min() < 0
    ):
        raise DataError(
            f"label_probs must be probabilities of shape {log_probs.shape} with rows that sum to 1, "
            f"got shape {truth.shape}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = truth * (np.log(truth) - log_probs)
    return np.maximum(np.where(truth > 0, terms, 0.0).sum(axis=1), 0.0)
