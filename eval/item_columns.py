"""Per-item values of one set of probabilities over choices, and of posterior draws."""

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.proper_scores import brier_score, correctness, kl_to_truth, negative_log_likelihood
from vlora.eval.metrics.uncertainty import (
    chosen_std,
    disagreement,
    entropy,
    expected_entropy,
    kl_from_mean,
    mutual_information,
    reverse_mutual_information,
    variation_ratio,
)

__all__ = ["CONFIDENT", "item_columns", "sample_columns", "score_columns"]

CONFIDENT = 0.5
"""An answer counts as confident above this probability."""


def item_columns(log_probs: Array, label: IntArray, truth: Array) -> dict[str, Array]:
    """What follows from log-probabilities item by item.

    Args:
        log_probs: Shape ``(N, K)``, padded with ``-inf``.
        label: Right choices, negative where there is none, ``(N,)``.
        truth: Known distributions of the answer, rows of NaN where there is none, ``(N, K)``.

    Returns:
        Values ``(N,)`` by name, NaN where an item has none.
    """
    log_confidence = np.minimum(log_probs.max(axis=1), 0.0)
    columns = {
        "log_confidence": log_confidence,
        "confidence": np.exp(log_confidence),
        "confident_share": (log_confidence > np.log(CONFIDENT)).astype(np.float64),
        "entropy": entropy(log_probs),
    }
    for name in ("correct", "nll", "brier"):
        columns[name] = np.full(len(log_probs), np.nan)
    rows = np.flatnonzero(label >= 0)
    if len(rows):
        answers, right = log_probs[rows], label[rows]
        columns["correct"][rows] = correctness(answers, right)
        columns["nll"][rows] = negative_log_likelihood(answers, right).per_item
        columns["brier"][rows] = brier_score(answers, right)
    known = np.flatnonzero(~np.isnan(truth[:, 0]))
    if len(known):
        columns["kl_to_truth"] = np.full(len(log_probs), np.nan)
        columns["kl_to_truth"][known] = kl_to_truth(truth[known], log_probs[known])
    return columns


def sample_columns(samples: Array, at_mean: Array | None, antithetic: bool) -> dict[str, Array]:
    """The split of the entropy of draws, and how far they are from the mean and from each other.

    Args:
        samples: Log-probabilities per draw, ``(S, N, K)``.
        at_mean: Those at the mean, ``(N, K)``; None leaves the divergence from them out.
        antithetic: Whether draws 2j and 2j+1 mirror each other.

    Returns:
        Values ``(N,)`` by name; those that need two draws are left out where there is one.
    """
    found = {"expected_entropy": expected_entropy(samples)}
    if at_mean is not None:
        found["kl_from_mean"] = kl_from_mean(samples, at_mean)
    if len(samples) > 1:
        found |= _information(samples, antithetic)
        found["variation_ratio"] = variation_ratio(samples)
        found["disagreement"] = disagreement(samples)
        found["chosen_std"] = chosen_std(samples)
    return found


def score_columns(
    mixture: Array, samples: Array | None, label: IntArray, antithetic: bool
) -> dict[str, Array]:
    """The columns that scores of uncertainty are made of, and whether the answers are right: what ranking needs alone.

    Args:
        mixture: Log-probabilities of the mixture, tempered or not, ``(N, K)``.
        samples: Those per draw, ``(S, N, K)``; None leaves the split of the entropy out.
        label: Right choices, negative where there is none, ``(N,)``.
        antithetic: Whether draws 2j and 2j+1 mirror each other.

    Returns:
        Values ``(N,)`` by name, as those of the functions above.
    """
    columns = {"log_confidence": np.minimum(mixture.max(axis=1), 0.0), "entropy": entropy(mixture)}
    columns["correct"] = np.full(len(mixture), np.nan)
    rows = np.flatnonzero(label >= 0)
    if len(rows):
        columns["correct"][rows] = correctness(mixture[rows], label[rows])
    if samples is not None:
        columns["expected_entropy"] = expected_entropy(samples)
        if len(samples) > 1:
            columns |= _information(samples, antithetic)
            columns["variation_ratio"] = variation_ratio(samples)
    return columns


def _information(samples: Array, antithetic: bool) -> dict[str, Array]:
    """The three divergences between draws; the last is the sum of the others, and not computed twice."""
    mutual = mutual_information(samples, antithetic=antithetic)
    reverse = reverse_mutual_information(samples, antithetic=antithetic)
    return {
        "mutual_information": mutual,
        "reverse_mutual_information": reverse,
        "expected_pairwise_kl": mutual + reverse,
    }
