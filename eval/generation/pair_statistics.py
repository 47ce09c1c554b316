"""Metrics of a score or a confidence of one side of a pair, as statistics of weighted questions."""

from collections.abc import Callable

import numpy as np

from vlora.eval.compare_parts import Statistic, ratio_of
from vlora.eval.generation.confidence import sharpen
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.calibration import width_gaps
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.metrics.selective import Kept

__all__ = ["area", "area_under_risk", "brier", "calibration_error", "penalised", "sharpened"]


def area(positive: Array, uncertainty: Array) -> Statistic:
    """AUROC of an uncertainty ``(N,)`` for the questions that are positive ``(N,)``."""
    ranking = Ranking.of(uncertainty)
    return lambda weights: Separation.of(ranking, positive, weights).auroc()


def area_under_risk(wrong: Array, uncertainty: Array) -> Statistic:
    """AURC of answers that are wrong or not, in the order of an uncertainty, ``(N,)`` each."""
    ranking = Ranking.of(uncertainty)
    return lambda weights: Kept.of(ranking, 1 - wrong, weights).aurc()


OfConfidence = Callable[[Array, Array, Array], Statistic]
"""Of a confidence, whether answers are right, and whether they are attempts, ``(N,)`` each."""


def sharpened(
    of: OfConfidence, correct: Array, said: Array, power: float | None, confidence: Array
) -> Statistic:
    """A metric of a confidence at its temperature."""
    return of(sharpen(confidence, power or 1.0), correct, said)


def penalised(threshold: float, sure: Array, correct: Array, said: Array) -> Statistic:
    """Penalised score of answering only above the threshold."""
    return ratio_of(penalties(said * (sure >= threshold), correct, threshold), np.ones(len(sure)))


def brier(sure: Array, correct: Array, said: Array) -> Statistic:
    """Brier score of the attempts, NaN where there are none."""
    return ratio_of(said * np.square(sure - correct), said)


def calibration_error(sure: Array, correct: Array, said: Array) -> Statistic:
    """Expected calibration error of the attempts in 15 bins of equal width, NaN where there are none."""
    gaps = width_gaps(sure, correct) * said[:, None]

    def statistic(weights: Array) -> Array:
        below, gap = weights @ said, np.abs(weights @ gaps).sum(axis=1)
        return np.divide(gap, below, out=np.full_like(below, np.nan), where=below != 0)

    return statistic
