"""Selective prediction: how right the answers are that a model would keep when it may decline the rest.

    R(k) = (1/k) sum_{i <= k} err_i  over the k most certain items,     AURC = (1/N) sum_k R(k)

Sources: El-Yaniv & Wiener 2010 (risk-coverage); Geifman et al. 2019, arXiv:1805.08206 (AURC, E-AURC).
Ties: items of equal uncertainty have no order, so every function returns the expectation over all orders of them, in
closed form (each tied item errs with the mean rate of its group). ``uncertainty``: higher is less certain.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval, vector
from vlora.eval.metrics.ranking import Ranking

__all__ = ["Kept", "RiskCoverage", "accuracy_at_coverage", "aurc", "excess_aurc", "risk_coverage"]


@dataclass(frozen=True)
class RiskCoverage:
    """The risk-coverage curve of N items."""

    coverage: Array
    """k / N for k = 1 … N."""
    risk: Array
    """Expected error rate among the k most certain items, shape ``(N,)``."""


@dataclass(frozen=True)
class Kept:
    """Items in ascending uncertainty, in U groups of equal uncertainty, for B resamples at once.

    Counts are whole numbers, and every resample has N items.
    """

    count: Array
    """Items per group, shape ``(B, U)``."""
    errors: Array
    """Wrong answers per group, shape ``(B, U)``."""
    total: Array
    """Items up to and with each group, shape ``(B, U)``."""
    total_errors: Array
    """Wrong answers up to and with each group, shape ``(B, U)``."""

    @classmethod
    def of(cls, ranking: Ranking, correct: Array, weights: Array) -> "Kept":
        """Collect ``weights`` ``(B, N)`` of answers ``correct`` ``(N,)`` in the order of ``ranking``."""
        count, errors = ranking.collapse(weights), ranking.collapse(weights, 1 - correct)
        return cls(count, errors, np.cumsum(count, axis=1), np.cumsum(errors, axis=1))

    def aurc(self) -> Array:
        """AURC per resample, ``(B,)``.

        A group of g items with e errors behind c items with E errors adds, with H the harmonic numbers,
        ``sum_{j=1..g} (E + j e/g) / (c + j) = E dH + (e/g) (g - c dH)``, where ``dH = H(c+g) - H(c)``.
        """
        size = int(self.total[0, -1])
        delta = np.diff(_harmonic(size)[self.total.astype(np.int64)], axis=1, prepend=0.0)
        ahead, errors_ahead = self.total - self.count, self.total_errors - self.errors
        area = errors_ahead * delta + self._rate() * (self.count - ahead * delta)
        return area.sum(axis=1) / size

    def oracle_aurc(self) -> Array:
        """AURC of the best order, all m errors last: (1/N) [m - (N-m) (H_N - H_{N-m})]. Shape ``(B,)``."""
        size = int(self.total[0, -1])
        harmonic, wrong = _harmonic(size), self.total_errors[:, -1]
        right = size - wrong
        tail = harmonic[-1] - np.interp(right, np.arange(size + 1), harmonic)
        return (wrong - right * tail) / size

    def accuracy_at(self, coverage: float) -> Array:
        """Accuracy of the ceil(coverage * N) most certain answers per resample, ``(B,)``."""
        answered = np.ceil(coverage * self.total[:, -1:] - 1e-9)
        taken = np.clip(answered - (self.total - self.count), 0.0, self.count)
        return 1 - (taken * self._rate()).sum(axis=1) / answered[:, 0]

    def _rate(self) -> Array:
        """Error rate of each group, 0 where a resample has none of it."""
        return self.errors / np.maximum(self.count, 1.0)


def _inputs(uncertainty: Any, correct: Any) -> tuple[Array, Array]:
    uncertainty, correct = vector("uncertainty", uncertainty), unit_interval("correct", correct)
    same_length(uncertainty=uncertainty, correct=correct)
    return uncertainty, correct


def _once(uncertainty: Any, correct: Any) -> Kept:
    """Every item counting one, ``B = 1``."""
    uncertainty, correct = _inputs(uncertainty, correct)
    return Kept.of(Ranking.of(uncertainty), correct, np.ones((1, len(correct))))


def _harmonic(n: int) -> Array:
    """Harmonic numbers H_0 … H_n, shape ``(n + 1,)``."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def risk_coverage(uncertainty: Any, correct: Any) -> RiskCoverage:
    """Error rate of the answers kept at every coverage.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The curve; its mean risk is the AURC.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    uncertainty, correct = _inputs(uncertainty, correct)
    ranking, ones = Ranking.of(uncertainty), np.ones((1, len(correct)))
    rate = ranking.collapse(ones, 1 - correct)[0] / ranking.collapse(ones)[0]
    errors = np.repeat(rate, np.diff(ranking.starts, append=len(correct)))
    kept = np.arange(1, len(correct) + 1)
    return RiskCoverage(kept / len(correct), np.cumsum(errors) / kept)


def aurc(uncertainty: Any, correct: Any) -> float:
    """Area under the risk-coverage curve, the plain mean of R(k) over k; in [0, 1], lower is better.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The area, in expectation over the order of ties.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    return float(_once(uncertainty, correct).aurc()[0])


def excess_aurc(uncertainty: Any, correct: Any) -> float:
    """E-AURC: AURC minus that of the best possible order of the same answers, by the exact sum; lower is better.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The excess, >= 0.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    kept = _once(uncertainty, correct)
    return float(max(kept.aurc()[0] - kept.oracle_aurc()[0], 0.0))


def accuracy_at_coverage(uncertainty: Any, correct: Any, coverage: float = 0.8) -> float:
    """Accuracy of the ceil(coverage * N) most certain answers; in [0, 1], higher is better.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.
        coverage: Share of the items that is answered, in (0, 1].

    Returns:
        The accuracy, in expectation over the order of ties.

    Raises:
        DataError: Lengths differ, empty, NaN, or a coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise DataError(f"coverage must lie in (0, 1], got {coverage}")
    return float(_once(uncertainty, correct).accuracy_at(coverage)[0])
