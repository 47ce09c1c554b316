"""Prediction-rejection ratio: how much of the possible gain from rejecting uncertain answers a score realises.

    AR(u) = (1/R) sum_{r = 0 … R-1} mean quality of the N - r most certain answers,     R = floor(max_rejection N)
    PRR   = (AR(u) - AR_random) / (AR(oracle) - AR_random)

Source: Malinin et al. 2017 (doi:10.18653/v1/P17-2008), for qualities between 0 and 1 as for right and wrong.
AR of a random order is the mean quality, exactly; the oracle rejects the worst answers first. Ties are taken in
expectation over their orders.
"""

from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, vector
from vlora.eval.metrics.ranking import Ranking

__all__ = ["prediction_rejection_ratio", "rejection_area"]


def rejection_area(uncertainty: Any, quality: Any, max_rejection: float = 1.0) -> float:
    """Mean quality of what is kept while up to a share ``max_rejection`` of the answers is rejected.

    Args:
        uncertainty: Higher is rejected earlier. Shape ``(N,)``.
        quality: Goodness of every answer, higher is better. Shape ``(N,)``.
        max_rejection: Largest share rejected, in (0, 1]; at least one answer is needed below it.

    Returns:
        The area, in units of the quality; higher is better.

    Raises:
        DataError: Lengths differ, empty, NaN, or a share that rejects no answer.
    """
    uncertainty, quality = vector("uncertainty", uncertainty), vector("quality", quality)
    same_length(uncertainty=uncertainty, quality=quality)
    size = len(quality)
    steps = int(max_rejection * size + 1e-9) if 0 < max_rejection <= 1 else 0
    if steps < 1:
        raise DataError(
            f"max_rejection must lie in (0, 1] and reject at least 1 of {size} answers, got {max_rejection}"
        )
    kept = np.cumsum(_in_order(uncertainty, quality)) / np.arange(1, size + 1)
    return float(kept[size - steps :].mean())


def prediction_rejection_ratio(uncertainty: Any, quality: Any, max_rejection: float = 1.0) -> float:
    """PRR: 1 is the oracle, 0 a random order, negative is worse than random; higher is better.

    It does not change when the quality is scaled or shifted.

    Args:
        uncertainty: Higher is rejected earlier. Shape ``(N,)``.
        quality: Goodness of every answer, higher is better. Shape ``(N,)``.
        max_rejection: Largest share rejected, in (0, 1].

    Returns:
        The ratio, NaN when all answers are equally good.

    Raises:
        DataError: Lengths differ, empty, NaN, or a share that rejects no answer.
    """
    area = rejection_area(uncertainty, quality, max_rejection)
    quality = vector("quality", quality)
    gain = rejection_area(-quality, quality, max_rejection) - quality.mean()
    if quality.min() == quality.max() or gain <= 0:
        return float("nan")
    return float((area - quality.mean()) / gain)


def _in_order(uncertainty: Array, quality: Array) -> Array:
    """Qualities from the most certain answer on, every tied one the mean of its group."""
    ranking, ones = Ranking.of(uncertainty), np.ones((1, len(quality)))
    mean = ranking.collapse(ones, quality)[0] / ranking.collapse(ones)[0]
    return np.repeat(mean, np.diff(ranking.starts, append=len(quality)))
