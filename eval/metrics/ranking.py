"""How well a score separates two classes: exact with ties, undefined (NaN) when a class is missing.

A higher score must mean "more likely positive". Classes may be fractional (a right choice among t tied ones counts
1/t), which the pairwise definitions carry over to without change.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray, same_length, unit_interval, vector

__all__ = ["Ranking", "Separation", "auroc", "average_precision", "fpr_at_tpr"]


@dataclass(frozen=True)
class Ranking:
    """N scores in ascending order, in U groups of equal score."""

    order: IntArray
    """Item at every rank, shape ``(N,)``."""
    starts: IntArray
    """Rank at which each group begins, shape ``(U,)``."""
    in_order: bool
    """The items came sorted, so that nothing needs to be moved."""

    @classmethod
    def of(cls, score: Array) -> "Ranking":
        """Rank ``score`` ``(N,)``; equal scores share a group."""
        order = np.argsort(score, kind="stable")
        ordered = score[order]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        return cls(order, starts, bool((order[1:] > order[:-1]).all()))

    def group_of_item(self) -> IntArray:
        """Index of every item's group, in the order the items came. Shape ``(N,)``."""
        group = np.empty(len(self.order), dtype=np.int64)
        sizes = np.diff(self.starts, append=len(self.order))
        group[self.order] = np.repeat(np.arange(len(self.starts)), sizes)
        return group

    def merge_runs(self, positive: Array) -> "Ranking":
        """The same order with neighbouring groups joined where ``positive`` ``(N,)`` is all 0 or all 1 in both.

        No pair of classes and no change of the false positive rate lies between such groups, so a ``Separation`` stays
        exact while its arrays get short.
        """
        ordered = positive[self.order]
        low, high = (reduce.reduceat(ordered, self.starts) for reduce in (np.minimum, np.maximum))
        pure = low == high
        joined = pure[1:] & pure[:-1] & (low[1:] == low[:-1]) & ((low[1:] == 0) | (low[1:] == 1))
        return Ranking(self.order, self.starts[np.concatenate([[True], ~joined])], self.in_order)

    def collapse(self, weights: Array, values: Array | None = None) -> Array:
        """Sum ``weights * values`` over each group: ``(B, N)`` and ``(N,)`` to ``(B, U)``, ascending in score."""
        ranked = weights if self.in_order else np.take(weights, self.order, axis=1)
        if values is not None:
            ranked = ranked * values[self.order]
        if len(self.starts) == len(self.order):
            return ranked
        return np.add.reduceat(ranked, self.starts, axis=1)


@dataclass(frozen=True)
class Separation:
    """Weights of the two classes in U groups of ascending score, for B resamples at once."""

    positives: Array
    """Weight of the positive class per group, shape ``(B, U)``."""
    negatives: Array
    """Weight of the negative class per group, shape ``(B, U)``."""

    @classmethod
    def of(cls, ranking: Ranking, positive: Array, weights: Array) -> "Separation":
        """Collect ``weights`` ``(B, N)`` of items with classes ``positive`` ``(N,)`` in the order of ``ranking``.

        Give it ``ranking.merge_runs(positive)`` where many blocks of weights follow.
        """
        positives = ranking.collapse(weights, positive)
        return cls(positives, ranking.collapse(weights) - positives)

    def auroc(self) -> Array:
        """Area under the ROC curve per resample, ``(B,)``, NaN where a class is missing."""
        below = np.cumsum(self.negatives, axis=1) - self.negatives / 2
        pairs = np.einsum("bu,bu->b", self.positives, below)
        return _over(pairs, self.positives.sum(axis=1) * self.negatives.sum(axis=1))

    def fpr_at_tpr(self, tpr: float = 0.95) -> Array:
        """False positive rate at the highest threshold that finds ``tpr`` of the positives, per resample, ``(B,)``."""
        found = np.cumsum(self.positives[:, ::-1], axis=1)
        alarms = np.cumsum(self.negatives[:, ::-1], axis=1)
        first = np.argmax(found >= tpr * found[:, -1:] - 1e-9, axis=1)[:, None]
        rate = _over(np.take_along_axis(alarms, first, axis=1)[:, 0], alarms[:, -1])
        return np.where(found[:, -1] > 0, rate, np.nan)

    def average_precision(self) -> Array:
        """Step sum of precision over recall, per resample, ``(B,)``; NaN without a positive."""
        hits, alarms = self.positives[:, ::-1], self.negatives[:, ::-1]
        found = np.cumsum(hits, axis=1)
        flagged = found + np.cumsum(alarms, axis=1)
        precision = np.divide(found, flagged, out=np.zeros_like(found), where=flagged > 0)
        return _over((hits * precision).sum(axis=1), found[:, -1])


def _separate(score: Any, positive: Any) -> Separation:
    """Both classes with every item counting one, ``B = 1``."""
    score, positive = vector("score", score), unit_interval("positive", positive)
    same_length(score=score, positive=positive)
    return Separation.of(Ranking.of(score), positive, np.ones((1, len(score))))


def _over(numerator: Array, denominator: Array) -> Array:
    """Quotient, NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def auroc(score: Any, positive: Any) -> float:
    """Area under the ROC curve, P(score+ > score-) + P(score+ = score-) / 2, in [0, 1].

    Args:
        score: Higher means more likely positive. Shape ``(N,)``.
        positive: Class in [0, 1]. Shape ``(N,)``.

    Returns:
        The area; .5 is chance; NaN when a class is missing.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    return float(_separate(score, positive).auroc()[0])


def fpr_at_tpr(score: Any, positive: Any, tpr: float = 0.95) -> float:
    """False positive rate at the highest threshold that finds a share ``tpr`` of the positives (FPR95 by default).

    The rule is "positive if score >= threshold" with thresholds at observed scores. In [0, 1], lower is better.

    Args:
        score: Higher means more likely positive. Shape ``(N,)``.
        positive: Class in [0, 1]. Shape ``(N,)``.
        tpr: True positive rate to reach.

    Returns:
        The rate, NaN when a class is missing.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    return float(_separate(score, positive).fpr_at_tpr(tpr)[0])


def average_precision(score: Any, positive: Any) -> float:
    """Area under the precision-recall curve as a step sum, sum_t (R_t - R_{t-1}) P_t, tied scores as one step.

    Its chance level is the share of positives, not .5.

    Args:
        score: Higher means more likely positive. Shape ``(N,)``.
        positive: Class in [0, 1]. Shape ``(N,)``.

    Returns:
        The area in [0, 1], higher is better; NaN when there is no positive.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    return float(_separate(score, positive).average_precision()[0])
