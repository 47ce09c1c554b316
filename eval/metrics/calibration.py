"""Binned calibration error with its bins, its finite-sample floor, and resampled forms.

    ECE = sum_b (n_b / N) |acc_b - conf_b|        (Guo et al. 2017, arXiv:1706.04599, eq. 3)

Schemes. ``equal_width``: bins ((b-1)/n, b/n], right-closed, with 0 kept in the first and 1 in the last bin.
``equal_mass``: items sorted by confidence into bins of equal count; items of equal confidence always share a bin (the
one that holds the middle of the tie group), so bins may differ in size or be empty. A metric's name says its scheme.
Confidence is the probability of the predicted choice, correctness may be fractional for exact ties.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, same_length, unit_interval
from vlora.eval.metrics.ranking import Ranking

__all__ = [
    "Calibration",
    "CalibrationFloor",
    "Scheme",
    "bin_index",
    "calibration",
    "calibration_floor",
    "calibration_gap",
    "debiased_gaps",
    "debiased_l1",
    "debiased_l2",
    "mass_ece",
    "width_gaps",
]

Scheme = Literal["equal_width", "equal_mass"]
_ERF = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class Calibration:
    """N predictions in bins of confidence; NaN marks an empty bin."""

    confidence: Array
    """Mean confidence per bin, shape ``(num_bins,)``."""
    accuracy: Array
    """Mean correctness per bin, shape ``(num_bins,)``."""
    count: IntArray
    """Predictions per bin, shape ``(num_bins,)``; sums to N."""

    def error(self, norm: float = 1) -> float:
        """(sum_b (n_b/N) |acc_b - conf_b|^norm)^(1/norm): 1 is the ECE, 2 the RMSCE; in [0, 1], lower is better."""
        used = self.count > 0
        gap = np.abs(self.accuracy[used] - self.confidence[used])
        weight = self.count[used] / self.count.sum()
        return float((weight @ gap**norm) ** (1 / norm))

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1], lower is better."""
        return self.error(1)

    def maximum_error(self, min_count: int = 10) -> float:
        """Largest |acc_b - conf_b| over bins of at least ``min_count`` predictions, NaN when there is none.

        The minimum keeps a bin of a handful of items from being the whole metric.
        """
        used = self.count >= max(min_count, 1)
        return (
            float(np.abs(self.accuracy[used] - self.confidence[used]).max()) if used.any() else float("nan")
        )


@dataclass(frozen=True)
class CalibrationFloor:
    """What the ECE of a perfectly calibrated model would be on this many items."""

    mean: float
    """Mean of the ECE when every answer is right with probability equal to its confidence."""
    high: float
    """95 % quantile of the same: an ECE below it is no evidence of miscalibration."""


def _inputs(confidence: Any, correct: Any, num_bins: int) -> tuple[Array, Array]:
    confidence, correct = unit_interval("confidence", confidence), unit_interval("correct", correct)
    same_length(confidence=confidence, correct=correct)
    if num_bins < 1:
        raise DataError(f"num_bins must be at least 1, got {num_bins}")
    return confidence, correct


def bin_index(confidence: Array, num_bins: int = 15, scheme: Scheme = "equal_width") -> IntArray:
    """Bin of every confidence under a scheme of this module.

    Args:
        confidence: Values in [0, 1], shape ``(N,)``.
        num_bins: Number of bins.
        scheme: ``equal_width`` or ``equal_mass``.

    Returns:
        Indices 0 … num_bins-1, shape ``(N,)``.
    """
    if scheme == "equal_width":
        edges = np.arange(1, num_bins) / num_bins  # correctly rounded, so that 0.2 meets the edge 3/15
        return np.searchsorted(edges, confidence, side="left")
    ranking = Ranking.of(confidence)
    group = ranking.group_of_item()
    return _mass_bins(ranking.collapse(np.ones((1, len(confidence)))), num_bins)[0, group]


def _mass_bins(group_count: Array, num_bins: int) -> IntArray:
    """Bin of every tie group from counts ``(B, U)`` in order of confidence: where its middle falls, right-closed."""
    upper = np.cumsum(group_count, axis=1)
    middle = (upper - group_count / 2) * num_bins / upper[:, -1:]  # exact on every edge, at most num_bins
    return np.maximum(np.ceil(middle).astype(np.int64) - 1, 0)


def calibration(
    confidence: Any, correct: Any, num_bins: int = 15, scheme: Scheme = "equal_width"
) -> Calibration:
    """Put predictions into bins of confidence.

    Args:
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.
        num_bins: Number of bins.
        scheme: ``equal_width`` or ``equal_mass``, see the module.

    Returns:
        The bins; ``.ece`` is the expected calibration error.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    confidence, correct = _inputs(confidence, correct, num_bins)
    index = bin_index(confidence, num_bins, scheme)
    count = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        return Calibration(
            confidence=np.bincount(index, confidence, num_bins) / count,
            accuracy=np.bincount(index, correct, num_bins) / count,
            count=count.astype(np.int64),
        )


def calibration_gap(confidence: Any, correct: Any) -> float:
    """Mean confidence minus accuracy, in [-1, 1]: positive is over-confident, negative under-confident.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    confidence, correct = _inputs(confidence, correct, 1)
    return float((confidence - correct).mean())


def debiased_l2(bins: Calibration) -> float:
    """Debiased root-mean-square calibration error (Kumar et al. 2019, arXiv:1909.10155).

        max(0, sum_b (n_b/N) [(acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)])^(1/2)

    Bins of fewer than two predictions count zero. In [0, 1], lower is better.
    """
    used = bins.count > 1
    count, accuracy = bins.count[used], bins.accuracy[used]
    square = (accuracy - bins.confidence[used]) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    return float(max(0.0, (count / bins.count.sum()) @ square) ** 0.5)


def debiased_l1(bins: Calibration) -> float:
    """Expected calibration error with the part taken off that noise in the bins' accuracies adds.

        max(0, 2 ECE - sum_b (n_b/N) E|acc_b + sd_b Z - conf_b|),   sd_b^2 = acc_b (1 - acc_b) / n_b,   Z ~ N(0, 1)

    Source: the Gaussian resampling of uncertainty-calibration (``normal_debiased_ce``), here by the mean of a folded
    normal in place of random numbers, and never below 0. Bins of fewer than two predictions count zero. In [0, 1],
    lower is better.
    """
    count, used = bins.count, bins.count > 0
    accuracy, gap = np.zeros(len(count)), np.zeros(len(count))
    accuracy[used], gap[used] = bins.accuracy[used], bins.accuracy[used] - bins.confidence[used]
    return float(debiased_gaps(count.astype(np.float64)[None], gap[None], accuracy[None])[0])


def debiased_gaps(count: Array, gap: Array, accuracy: Array) -> Array:
    """Debiased expected calibration error of B resamples from their bins, shape ``(B,)``; see :func:`debiased_l1`.

    Args:
        count: Predictions per bin, shape ``(B, num_bins)``.
        gap: Accuracy minus confidence per bin, of either sign.
        accuracy: Accuracy per bin.
    """
    gap, sd = np.abs(gap), np.sqrt(np.maximum(accuracy * (1 - accuracy), 0.0) / np.maximum(count, 1.0))
    z = np.divide(gap, sd, out=np.zeros_like(gap), where=sd > 0)
    folded = sd * (2 / np.pi) ** 0.5 * np.exp(-(z**2) / 2) + gap * np.asarray(
        _ERF(z / 2**0.5), dtype=np.float64
    )
    expected = np.where(sd > 0, folded, gap)
    weight = np.where(count > 1, count, 0.0) / count.sum(axis=1, keepdims=True)
    return np.maximum((weight * (2 * gap - expected)).sum(axis=1), 0.0)


def calibration_floor(
    confidence: Any,
    num_bins: int = 15,
    scheme: Scheme = "equal_width",
    *,
    num_simulations: int = 1000,
    seed: int = 0,
) -> CalibrationFloor:
    """ECE of a perfectly calibrated model on these confidences: right ~ Bernoulli(confidence), simulated.

    With 200 items and 15 bins it is about .08, so an ECE cannot be read without it.

    Args:
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        num_bins: Number of bins.
        scheme: ``equal_width`` or ``equal_mass``.
        num_simulations: Simulated label sets.
        seed: Seed of numpy's ``default_rng``.

    Returns:
        Mean and 95 % quantile.

    Raises:
        DataError: Empty, NaN, or values outside [0, 1].
    """
    confidence, _ = _inputs(confidence, confidence, num_bins)
    order = np.argsort(bin_index(confidence, num_bins, scheme), kind="stable")
    starts = np.flatnonzero(np.diff(bin_index(confidence, num_bins, scheme)[order], prepend=-1))
    confidence = confidence[order]
    expected = np.add.reduceat(confidence, starts)
    rng = np.random.default_rng(seed)
    errors, block = [], max(1, (1 << 17) // len(confidence))
    for done in range(0, num_simulations, block):
        shape = (min(block, num_simulations - done), len(confidence))
        right = np.cumsum(rng.random(shape, dtype=np.float32) < confidence, axis=1, dtype=np.int32)
        upto = right[:, np.append(starts[1:], len(confidence)) - 1]
        errors.append(np.abs(np.diff(upto, axis=1, prepend=0) - expected).sum(axis=1) / len(confidence))
    errors = np.concatenate(errors)
    return CalibrationFloor(float(errors.mean()), float(np.quantile(errors, 0.95)))


def width_gaps(confidence: Array, correct: Array, num_bins: int = 15) -> Array:
    """Correctness minus confidence of every item in the column of its equal-width bin, shape ``(N, num_bins)``.

    For resamples with counts ``weights`` ``(B, N)``, the ECE is ``abs(weights @ gaps).sum(1) / N``.
    """
    return np.eye(num_bins)[bin_index(confidence, num_bins)] * (correct - confidence)[:, None]


def mass_ece(group_count: Array, group_gap: Array, num_bins: int = 15) -> Array:
    """Equal-mass ECE of B resamples, whose bins are made anew in each.

    Args:
        group_count: Items per group of equal confidence, ascending in confidence. Shape ``(B, U)``.
        group_gap: Sum of correctness minus confidence over each group. Shape ``(B, U)``.
        num_bins: Number of bins.

    Returns:
        ECE per resample, shape ``(B,)``.
    """
    rows = len(group_count)
    index = _mass_bins(group_count, num_bins) + num_bins * np.arange(rows)[:, None]
    gaps = np.bincount(index.ravel(), group_gap.ravel(), rows * num_bins)
    return np.abs(gaps.reshape(rows, num_bins)).sum(axis=1) / group_count.sum(axis=1)
