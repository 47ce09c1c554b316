"""A threshold for "don't know" with a guarantee: the error rate of what is answered stays below a limit.

    R(t) = P(wrong | uncertainty <= t),        choose t so that P(R(t) > risk) <= delta over calibration sets

Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052): each threshold of a grid is a null hypothesis R(t) > risk.
Given n answered calibration items with w wrong ones, its exact p-value is P(Bin(n, risk) <= w), which is the same as
asking whether the Clopper-Pearson bound of the risk lies below the limit. Thresholds are tested from strict to lax
until one is not rejected (fixed sequence testing). The strictest answer too few items to prove anything, so the
sequence starts where other labelled items promise most (``likely_start``; split fixed sequence testing, ibid.); without
such items several starting points share delta equally.

The guarantee needs a grid and a start that do not depend on the calibration items: round numbers for a confidence, or
quantiles of the uncertainty on *other* items (``threshold_grid``). Items must be exchangeable with those to come; under
shift nothing is promised.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval, vector
from vlora.eval.metrics.binomial import binomial_tail, upper_bound

__all__ = ["RiskThreshold", "controlled_threshold", "items_for_risk", "likely_start", "threshold_grid"]


@dataclass(frozen=True)
class RiskThreshold:
    """The laxest threshold that was shown to keep the risk."""

    threshold: float
    """Answer when the uncertainty is at most this; ``-inf`` when no threshold could be shown to work."""
    answered: int
    """Calibration items answered at the threshold."""
    wrong: int
    """Wrong ones among them."""
    n: int
    """Calibration items."""
    risk_bound: float
    """Upper Clopper-Pearson bound of the risk at this one threshold, at the confidence its test was run with."""

    @property
    def coverage(self) -> float:
        """Share of the calibration items answered; higher is better."""
        return self.answered / self.n


def threshold_grid(uncertainty: Any, num_thresholds: int = 100) -> Array:
    """Thresholds to test, from the uncertainty of items that are *not* used for calibration.

    Args:
        uncertainty: Of other items of the same kind, higher is less certain. Shape ``(M,)``.
        num_thresholds: Quantiles to take, evenly from strict to lax.

    Returns:
        Distinct thresholds, ascending.

    Raises:
        DataError: Empty, NaN, or no threshold asked for.
    """
    if num_thresholds < 1:
        raise DataError(f"num_thresholds must be at least 1, got {num_thresholds}")
    ordered = np.sort(vector("uncertainty", uncertainty))
    rank = np.ceil(np.arange(1, num_thresholds + 1) / num_thresholds * len(ordered) - 1e-9).astype(np.int64)
    return np.unique(ordered[np.maximum(rank - 1, 0)])


def controlled_threshold(
    uncertainty: Any,
    wrong: Any,
    grid: Any,
    *,
    risk: float = 0.05,
    delta: float = 0.1,
    start: float | None = None,
    num_starts: int = 5,
) -> RiskThreshold:
    """Largest threshold of a grid whose error rate is at most ``risk``, with confidence 1 - ``delta``.

    Args:
        uncertainty: Of the calibration items, higher is less certain. Shape ``(N,)``.
        wrong: Whether each answer is wrong, 0 or 1. Shape ``(N,)``.
        grid: Thresholds to test, chosen without these items. Shape ``(G,)``.
        risk: Error rate allowed among the answers, in (0, 1).
        delta: Chance, over calibration sets, that the threshold breaks the limit, in (0, 1).
        start: Strictest threshold to test, chosen without these items (:func:`likely_start`): one sequence, which has
            all of ``delta``.
        num_starts: Without ``start``: sequences that share ``delta``, starting evenly over the grid.

    Returns:
        The threshold; one that answers nothing when no test succeeds.

    Raises:
        DataError: Lengths differ, empty, NaN, an answer that is neither right nor wrong, or limits outside (0, 1).
    """
    uncertainty, wrong = _inputs(uncertainty, wrong, risk, delta)
    grid = np.unique(vector("grid", grid))
    starts = np.unique(np.linspace(0, len(grid), max(num_starts, 1), endpoint=False).astype(np.int64))
    if start is not None:
        starts = np.searchsorted(grid, [start])
    share = delta / len(starts)
    answered, errors = _counts(uncertainty, wrong, grid)
    best = -1
    for first in starts:
        for index in range(max(first, best + 1), len(grid)):
            if binomial_tail(int(errors[index]), int(answered[index]), risk) > share:
                break
            best = index
    if best < 0:
        return RiskThreshold(float("-inf"), 0, 0, len(wrong), 1.0)
    kept, failed = int(answered[best]), int(errors[best])
    return RiskThreshold(float(grid[best]), kept, failed, len(wrong), upper_bound(failed, kept, share))


def likely_start(uncertainty: Any, wrong: Any, grid: Any, *, num_items: int, risk: float = 0.05) -> float:
    r"""Threshold whose test is likeliest to succeed, judged by items that are *not* used for calibration.

    .. math:: \arg\min_t P(\mathrm{Bin}(n_t, \mathrm{risk}) \le n_t \hat r_t),
              \quad n_t = N m_t / M, \quad \hat r_t = (w_t + 1/2) / (m_t + 1)

    for m_t of M items answered at t and w_t of them wrong; counts are rounded.

    Args:
        uncertainty: Of the other items, higher is less certain. Shape ``(M,)``.
        wrong: Whether each answer is wrong, 0 or 1. Shape ``(M,)``.
        grid: Thresholds to test. Shape ``(G,)``.
        num_items: N, calibration items.
        risk: Error rate allowed among the answers, in (0, 1).

    Returns:
        One of the grid, the strictest of equals.

    Raises:
        DataError: Lengths differ, empty, NaN, an answer that is neither right nor wrong, or a risk outside (0, 1).
    """
    uncertainty, wrong = _inputs(uncertainty, wrong, risk, 0.5)
    grid = np.unique(vector("grid", grid))
    answered, errors = _counts(uncertainty, wrong, grid)
    expected = num_items * answered / len(wrong)
    failed = expected * (errors + 0.5) / (answered + 1)
    chances = [binomial_tail(round(f), round(n), risk) for f, n in zip(failed, expected, strict=True)]
    return float(grid[int(np.argmin(chances))])


def _counts(uncertainty: Array, wrong: Array, grid: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items answered at every threshold, and wrong ones among them, ``(G,)`` each."""
    there = uncertainty <= grid[:, None]
    return there.sum(axis=1), (wrong * there).sum(axis=1).astype(np.int64)


def items_for_risk(risk: float = 0.05, delta: float = 0.1, error_rate: float = 0.0) -> int:
    """Answered calibration items that prove an error rate below ``risk``, if ``error_rate`` of them are wrong.

    Without an error it is log(delta) / log(1 - risk): 59 items for 5 % at 95 % confidence.

    Args:
        risk: Error rate to be excluded, in (0, 1).
        delta: Error probability of the proof, in (0, 1).
        error_rate: Error rate one expects to see, below ``risk``.

    Returns:
        An n for which P(Bin(n, risk) <= ceil(error_rate * n)) <= delta; without errors the smallest.

    Raises:
        DataError: Limits outside (0, 1), or an error rate that is not below the risk.
    """
    _limits(risk, delta)
    if not 0 <= error_rate < risk:
        raise DataError(f"error_rate must lie in [0, {risk}), the risk to be excluded, got {error_rate}")
    high = 1
    while not _proves(high, risk, delta, error_rate):
        high *= 2
    # The tail moves in a saw-tooth as the count of errors steps up, so the last stretch is searched one by one.
    return next(n for n in range(high // 2, high + 1) if n and _proves(n, risk, delta, error_rate))


def _proves(n: int, risk: float, delta: float, error_rate: float) -> bool:
    return binomial_tail(int(np.ceil(error_rate * n - 1e-9)), n, risk) <= delta


def _inputs(uncertainty: Any, wrong: Any, risk: float, delta: float) -> tuple[Array, Array]:
    _limits(risk, delta)
    uncertainty, wrong = vector("uncertainty", uncertainty), unit_interval("wrong", wrong)
    same_length(uncertainty=uncertainty, wrong=wrong)
    if not np.isin(wrong, [0, 1]).all():
        raise DataError("wrong must be 0 or 1 for every item; break ties between choices before calibrating")
    return uncertainty, wrong


def _limits(risk: float, delta: float) -> None:
    if not 0 < risk < 1 or not 0 < delta < 1:
        raise DataError(f"risk and delta must lie in (0, 1), got {risk} and {delta}")
