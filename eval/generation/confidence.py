r"""A confidence in one answer, made calibrated with one number: ``p^(1/T)`` with T fitted on held-out answers.

    T* = argmin_T -(1/N) sum_i [a_i log p_i^(1/T) + (1 - a_i) log(1 - p_i^(1/T))]

It is temperature scaling (Guo et al. 2017, arXiv:1706.04599) for a single probability instead of K: the ranking of the
answers stays as it is, their level moves. The objective is convex in beta = 1/T, so bisection on its slope finds it.
"""

from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval

__all__ = ["fit_power", "sharpen"]

BOUNDS = (1e-3, 1e3)
_SMALLEST = 1e-300


def _logs(confidence: Any) -> Array:
    """Logarithms of p, away from 0 and 1 by what float64 can tell."""
    values = unit_interval("confidence", confidence)
    return np.log(np.clip(values, _SMALLEST, 1 - 1e-12))


def fit_power(confidence: Any, correct: Any) -> float:
    """The exponent beta = 1/T that gives held-out answers the smallest negative log-likelihood.

    Args:
        confidence: Probability of being right, in [0, 1]. Shape ``(N,)``.
        correct: 1 right, 0 wrong, between for partial credit. Shape ``(N,)``.

    Returns:
        beta in [.001, 1000]; below 1 the confidences were too low (long answers), above 1 too high. A bound where the
        data do not determine it.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    logs, correct = _logs(confidence), unit_interval("correct", correct)
    same_length(confidence=logs, correct=correct)
    low, high = np.log(BOUNDS[0]), np.log(BOUNDS[1])
    if _slope(logs, correct, np.exp(low)) >= 0:
        return BOUNDS[0]
    if _slope(logs, correct, np.exp(high)) <= 0:
        return BOUNDS[1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(logs, correct, np.exp(middle)) < 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def _slope(logs: Array, correct: Array, beta: float) -> float:
    """Slope of the NLL in beta: ``-mean[a l - (1 - a) l q / (1 - q)]`` with q = exp(beta l)."""
    q = np.exp(beta * logs)
    odds = q / -np.expm1(beta * logs)
    return float(-(correct * logs - (1 - correct) * logs * odds).mean())


def sharpen(confidence: Any, power: float) -> Array:
    """``p^beta``, shape ``(N,)``.

    Raises:
        DataError: Values outside [0, 1] or a power that is not positive.
    """
    if not power > 0:
        raise DataError(f"the power of a confidence must be > 0, got {power}")
    return unit_interval("confidence", confidence) ** power
