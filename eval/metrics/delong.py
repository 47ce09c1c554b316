"""Standard errors of AUROCs on the same items, and the test of their difference (DeLong et al. 1988).

    V10_i = P(s_i > s_j) + P(s_i = s_j) / 2  over negatives j,   for every positive i      (its placement)
    V01_j = the same over positives i,                           for every negative j
    AUROC = mean V10 = mean V01,      Cov = cov(V10) / m + cov(V01) / n      (m positives, n negatives)

Source: doi:10.2307/2531595; placements by ranks in O(N log N), exact with ties (Sun & Xu 2014,
doi:10.1109/LSP.2014.2337313). The test needs one set of classes for both scores, as in the detection of unknown
questions. Two models that are right on different items have different classes: compare their AUROC of correctness
with ``paired_bootstrap`` instead.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval, vector

__all__ = ["AurocComparison", "compare_auroc", "placements"]


@dataclass(frozen=True)
class AurocComparison:
    """AUROC of score a minus that of score b on the same items."""

    auroc_a: float
    """Of the first score, in [0, 1], higher is better."""
    auroc_b: float
    """Of the second score."""
    difference: float
    """a - b."""
    standard_error: float
    """Of the difference, from the items."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    """Upper end of it."""
    p_value: float
    """Two-sided, of no difference; 1 when the scores rank every pair alike."""


def placements(score: Any, positive: Any) -> tuple[Array, Array]:
    """Share of the other class that each item is ranked right against, ties counting half.

    Args:
        score: Higher means more likely positive. Shape ``(N,)``.
        positive: Class, 0 or 1. Shape ``(N,)``.

    Returns:
        Placements of the positives ``(m,)`` and of the negatives ``(n,)``, in the order of the items; the mean of
        either is the AUROC.

    Raises:
        DataError: Lengths differ, empty, NaN, a class that is not 0 or 1, or only one class.
    """
    score, positive = vector("score", score), unit_interval("positive", positive)
    same_length(score=score, positive=positive)
    if not np.isin(positive, [0, 1]).all() or positive.min() == positive.max():
        raise DataError(
            f"both classes 0 and 1 are needed, got {int((positive == 1).sum())} positives of {len(positive)} items"
        )
    high, low = np.sort(score[positive == 1]), np.sort(score[positive == 0])
    of_positives = _share_below(low, score[positive == 1])
    return of_positives, 1 - _share_below(high, score[positive == 0])


def compare_auroc(
    score_a: Any, score_b: Any, positive: Any, level: float = 0.95, *, draw_error: float = 0.0
) -> AurocComparison:
    """DeLong's test: does score a separate the classes better than score b on the same items?

    Args:
        score_a: First score, higher means more likely positive. Shape ``(N,)``.
        score_b: Second score of the same items.
        positive: Class, 0 or 1, shared by both. Shape ``(N,)``.
        level: Coverage of the interval.
        draw_error: Standard error that posterior draws add to the difference: its square joins DeLong's variance, since
            draws and items are independent.

    Returns:
        The difference with its standard error, interval and p-value.

    Raises:
        DataError: Lengths differ, empty, NaN, a class that is not 0 or 1, or fewer than two items of a class.
    """
    same_length(score_a=vector("score_a", score_a), score_b=vector("score_b", score_b))
    sides = list(zip(placements(score_a, positive), placements(score_b, positive), strict=True))
    if min(len(a) for a, _ in sides) < 2:
        raise DataError("a standard error of the AUROC needs at least 2 items of each class")
    variance = sum(float((a - b).var(ddof=1)) / len(a) for a, b in sides)
    auroc_a, auroc_b = (float(values.mean()) for values in sides[0])
    difference, error = auroc_a - auroc_b, variance**0.5
    normal = NormalDist()
    total = (variance + draw_error**2) ** 0.5
    half = normal.inv_cdf((1 + level) / 2) * total
    # Without any spread, a difference is certain and no difference is no evidence.
    ratio = abs(difference) / total if total > 1e-12 else (0.0 if abs(difference) < 1e-12 else np.inf)
    p_value = 2 * normal.cdf(-ratio)
    return AurocComparison(auroc_a, auroc_b, difference, error, difference - half, difference + half, p_value)


def _share_below(ordered: Array, values: Array) -> Array:
    """Share of ``ordered`` below each value, equal ones counting half."""
    below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
    return below / (2 * len(ordered))
