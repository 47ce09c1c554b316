"""Split conformal prediction: sets of choices that hold the right one with a chosen probability, whatever the model.

    q_hat = k-th smallest score of n calibration items,  k = ceil((n + 1)(1 - alpha)),  infinite when k > n
    set   = {choice : score <= q_hat}

* LAC: score(c) = 1 - p_c; the smallest sets on average (Sadinle, Lei & Wasserman 2019, arXiv:1609.00451).
* APS: score(c) = mass of the choices more probable than c, and of c itself with its equals; sets that grow with
  the difficulty of the item (Romano, Sesia & Candes 2020, arXiv:2006.02544). With ``uniform`` in [0, 1] per item the
  last part is scaled by it: exact instead of conservative coverage, at the price of a random set.

For exchangeable items P(right choice in the set) >= 1 - alpha, and equals k / (n + 1) when scores never tie. Over
calibration sets of size n the coverage of distinct scores is Beta(k, n + 1 - k) distributed (Vovk 2012,
arXiv:1209.2673), so a threshold fitted on few items may cover visibly less than asked: see ``coverage_band``.
Notation: ``log_probs`` (N, K), ``label`` (N,).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, labels, normalised, same_length, unit_interval, vector
from vlora.eval.metrics.binomial import beta_quantile
from vlora.eval.metrics.proper_scores import correctness

__all__ = [
    "SetReport",
    "aps_scores",
    "conformal_level",
    "conformal_threshold",
    "coverage_band",
    "lac_scores",
    "prediction_sets",
    "set_report",
]


def lac_scores(log_probs: Any) -> Array:
    """LAC score 1 - p_c of every choice, ``(N, K)``; impossible choices (padding) score infinity.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    return np.where(np.isneginf(log_probs), np.inf, _rounded(1 - np.exp(log_probs)))


def aps_scores(log_probs: Any, uniform: Any = None) -> Array:
    """APS score of every choice, ``(N, K)``; impossible choices (padding) score infinity.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        uniform: Independent uniform numbers in [0, 1], shape ``(N,)``, for exact coverage; None counts them as 1.

    Returns:
        Scores in [0, 1] or infinity.

    Raises:
        DataError: Shapes differ, NaN, rows that do not sum to one, or numbers outside [0, 1].
    """
    log_probs = normalised("log_probs", log_probs, 2)
    share = np.ones(len(log_probs)) if uniform is None else unit_interval("uniform", uniform)
    same_length(log_probs=log_probs, uniform=share)
    probs = np.exp(log_probs)
    other, own = probs[:, None, :], probs[:, :, None]
    above = (other * (other > own)).sum(axis=2)
    level = (other * (other == own)).sum(axis=2)
    return np.where(np.isneginf(log_probs), np.inf, _rounded(above + share[:, None] * level))


def conformal_level(n: int, alpha: float) -> int:
    """Rank k = ceil((n + 1)(1 - alpha)) of the score that becomes the threshold; n + 1 means "every choice".

    Raises:
        DataError: No calibration item, or an alpha outside (0, 1).
    """
    if n < 1 or not 0 < alpha < 1:
        raise DataError(
            f"a conformal set needs at least 1 calibration item and alpha in (0, 1), got {n} and {alpha}"
        )
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)


def conformal_threshold(scores: Any, alpha: float) -> float:
    """Threshold q_hat from the scores of the right choices of held-out items.

    Args:
        scores: Score of the right choice of every item, shape ``(n,)``; infinite for an impossible right choice.
        alpha: Share of items whose set may miss the right choice, in (0, 1).

    Returns:
        The k-th smallest score, infinity when n is too small for alpha: every choice is then in the set.

    Raises:
        DataError: Empty, NaN, or an alpha outside (0, 1).
    """
    scores = np.sort(vector("scores", scores))
    rank = conformal_level(len(scores), alpha)
    return float(scores[rank - 1]) if rank <= len(scores) else float("inf")


def coverage_band(n: int, alpha: float, level: float = 0.95) -> tuple[float, float]:
    """Central interval of the coverage that thresholds fitted on n items have, Beta(k, n + 1 - k).

    Args:
        n: Calibration items.
        alpha: Share that may be missed, in (0, 1).
        level: Probability of the band.

    Returns:
        Lower and upper coverage; (1, 1) when the sets hold every choice.

    Raises:
        DataError: No calibration item, or a share outside (0, 1).
    """
    rank = conformal_level(n, alpha)
    if rank > n:
        return 1.0, 1.0
    tail = (1 - level) / 2
    return beta_quantile(tail, rank, n + 1 - rank), beta_quantile(1 - tail, rank, n + 1 - rank)


def prediction_sets(scores: Array, threshold: float) -> NDArray[np.bool_]:
    """Which choices are in the set, ``(N, K)``: those whose score is at most the threshold.

    An infinite threshold takes every choice, padding included where its score is infinite too.
    """
    return np.asarray(scores) <= threshold


@dataclass(frozen=True)
class SetReport:
    """How prediction sets did on items with known answers."""

    coverage: float
    """Share of items whose set holds the right choice; should be at least 1 - alpha."""
    mean_size: float
    """Mean number of choices in a set; lower is better at equal coverage."""
    empty_share: float
    """Share of empty sets: items on which the model is less certain than on almost all calibration items."""
    coverage_by_size: dict[int, tuple[float, int]]
    """Coverage and number of items per size of the set: a good score covers at every size."""
    uncertainty_aware_accuracy: float
    """accuracy * sqrt(K) / mean size (Ye et al. 2024, arXiv:2401.12794); NaN when all sets are empty."""


def set_report(sets: NDArray[np.bool_], log_probs: Any, label: Any) -> SetReport:
    """Coverage and size of prediction sets.

    Args:
        sets: Which choices are in the set, shape ``(N, K)``.
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        The report.

    Raises:
        DataError: Shapes differ, empty, NaN, or a label out of range.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    if sets.shape != log_probs.shape:
        raise DataError(f"sets must have one row per item and one column per choice, got {sets.shape}")
    possible = sets & ~np.isneginf(log_probs)
    held, size = sets[np.arange(len(label)), label], possible.sum(axis=1)
    by_size = {int(s): (float(held[size == s].mean()), int((size == s).sum())) for s in np.unique(size)}
    width = (~np.isneginf(log_probs)).sum(axis=1).mean()
    accuracy = float(correctness(log_probs, label).mean())
    return SetReport(
        coverage=float(held.mean()),
        mean_size=float(size.mean()),
        empty_share=float((size == 0).mean()),
        coverage_by_size=by_size,
        uncertainty_aware_accuracy=accuracy * width**0.5 / size.mean() if size.any() else float("nan"),
    )


def _rounded(scores: Array) -> Array:
    """Scores without their last digits, so that sums of the same probabilities in another order stay equal."""
    return np.clip(np.round(scores, 12), 0.0, 1.0)
