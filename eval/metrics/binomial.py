"""Exact binomial tails, and what follows from them: Clopper-Pearson bounds and quantiles of the Beta distribution.

    P(X <= k) = sum_{j <= k} C(n, j) p^j (1-p)^(n-j)
    Beta(a, b) for whole a, b:  P(Y <= x) = P(X >= a),  X ~ Bin(a + b - 1, x)

Source: Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404.
"""

import math
from collections.abc import Callable

import numpy as np

from vlora.errors import DataError

__all__ = ["beta_quantile", "binomial_tail", "clopper_pearson", "upper_bound"]

_STEPS = 60  # halvings of [0, 1]


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) of X ~ Bin(n, p): the chance of at most k of n.

    Args:
        k: Count; below 0 gives 0, n and above gives 1.
        n: Number of trials, >= 0.
        p: Probability of each, in [0, 1].

    Returns:
        The probability.

    Raises:
        DataError: n is negative or p lies outside [0, 1].
    """
    if n < 0 or not 0 <= p <= 1:
        raise DataError(f"a binomial needs n >= 0 and p in [0, 1], got n = {n}, p = {p}")
    if k < 0 or k >= n:
        return float(k >= n)
    if p in (0.0, 1.0):
        return 1.0 - p
    logs = np.log(np.arange(1, n + 1))
    factorial = np.concatenate([[0.0], np.cumsum(logs)])
    j = np.arange(k + 1)
    terms = factorial[n] - factorial[j] - factorial[n - j] + j * math.log(p) + (n - j) * math.log1p(-p)
    return float(min(np.exp(terms).sum(), 1.0))


def upper_bound(k: int, n: int, delta: float) -> float:
    """Upper Clopper-Pearson bound of a probability, above it with confidence 1 - ``delta`` or more.

    The p at which P(X <= k) = delta; for k = 0 it is 1 - delta^(1/n).

    Args:
        k: Times it happened, 0 … n.
        n: Number of trials.
        delta: Error probability, in (0, 1).

    Returns:
        The bound; 1 without a trial.

    Raises:
        DataError: k lies outside 0 … n, or delta outside (0, 1).
    """
    if not 0 <= k <= n or not 0 < delta < 1:
        raise DataError(f"expected k in 0…n and delta in (0, 1), got k = {k}, n = {n}, delta = {delta}")
    if k == n:
        return 1.0
    return _root(lambda p: binomial_tail(k, n, p) > delta)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a probability after k of n.

    Args:
        k: Times it happened, 0 … n.
        n: Number of trials.
        level: Coverage that the interval has at least.

    Returns:
        Lower and upper end.

    Raises:
        DataError: k lies outside 0 … n, or the level outside (0, 1).
    """
    tail = (1 - level) / 2
    return 1 - upper_bound(n - k, n, tail), upper_bound(k, n, tail)


def beta_quantile(level: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) with whole parameters: the x with P(Y <= x) = level.

    Raises:
        DataError: A parameter is below 1, or the level lies outside (0, 1).
    """
    if a < 1 or b < 1 or not 0 < level < 1:
        raise DataError(f"expected a, b >= 1 and a level in (0, 1), got a = {a}, b = {b}, level = {level}")
    return _root(lambda x: 1 - binomial_tail(a - 1, a + b - 1, x) < level)


def _root(below: Callable[[float], bool]) -> float:
    """Where ``below`` turns from True to False on [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2
