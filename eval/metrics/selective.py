"""Selective prediction: how right the answers are that a model would keep when it may decline the rest.

    R(k) = (1/k) sum_{i <= k} err_i  over the k most certain items,     AURC  = (1/N) sum_k R(k)
                                                                        AUGRC = (1/N) sum_k (k/N) R(k)

Sources: El-Yaniv & Wiener 2010 (risk-coverage); Geifman et al. 2019, arXiv:1805.08206 (AURC, E-AURC); Traub et al.
2024, arXiv:2407.01032 (AUGRC).
Ties: items of equal uncertainty have no order, so every function returns the expectation over all orders of them, in
closed form (each tied item errs with the mean rate of its group). ``uncertainty``: higher is less certain.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval, vector
from vlora.eval.metrics.ranking import Ranking

__all__ = [
    "Kept",
    "RiskCoverage",
    "accuracy_at_coverage",
    "augrc",
    "aurc",
    "coverage_at_risk",
    "excess_aurc",
    "risk_coverage",
]


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

    def augrc(self) -> Array:
        """AUGRC per resample, ``(B,)``: a group of g items with e errors behind E adds ``g E + e (g + 1) / 2``."""
        size = int(self.total[0, -1])
        errors_ahead = self.total_errors - self.errors
        return (self.count * errors_ahead + self.errors * (self.count + 1) / 2).sum(axis=1) / size**2

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

    def coverage_at(self, risk: float) -> Array:
        """Largest coverage with an error rate of at most ``risk``, in whole tie groups, per resample, ``(B,)``."""
        good = self.total_errors <= risk * self.total + 1e-9
        return (self.total * good).max(axis=1) / self.total[0, -1]

    def rejection_ratio(self) -> Array:
        """Prediction-rejection ratio of right and wrong answers per resample, ``(B,)``; NaN where all are alike.

        The mean quality of what is kept is 1 - risk, so its area is 1 - AURC, for the oracle order too.
        """
        wrong = self.total_errors[:, -1] / self.total[:, -1]
        gain = wrong - self.oracle_aurc()
        alike = (wrong <= 0) | (wrong >= 1)
        return np.divide(wrong - self.aurc(), gain, out=np.full_like(gain, np.nan), where=~alike & (gain > 0))

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


def augrc(uncertainty: Any, correct: Any) -> float:
    """Area under the generalised risk-coverage curve: mean over k of the share of all items kept and wrong.

    AURC counts an error among the first few answers many times over; here every error counts by how long it is kept.
    With error rate e it is (1 - AUROC) e (1 - e) + e^2 / 2 up to terms of 1/N. In [0, 1/2 + 1/(2N)], lower is better.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The area, in expectation over the order of ties.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    return float(_once(uncertainty, correct).augrc()[0])


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


def coverage_at_risk(uncertainty: Any, correct: Any, risk: float = 0.05) -> float:
    """Largest share of the items that can be answered with an error rate of at most ``risk``; higher is better.

    The curve may cross the risk several times; this is the last crossing, in steps of whole tie groups, since no
    threshold can answer a part of one. It is fitted to the items it is measured on: for a threshold that holds on new
    items see ``risk_control``.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.
        risk: Error rate allowed among the answers, in [0, 1].

    Returns:
        The coverage, 0 when no threshold keeps the risk.

    Raises:
        DataError: Lengths differ, empty, NaN, or a risk outside [0, 1].
    """
    if not 0 <= risk <= 1:
        raise DataError(f"risk must lie in [0, 1], got {risk}")
    return float(_once(uncertainty, correct).coverage_at(risk)[0])
