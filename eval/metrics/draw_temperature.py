"""Temperature scaling of every posterior draw, or member of an ensemble, before they are averaged.

    p_T(k | x) = (1/S) sum_s softmax(log p_s(. | x) / T)_k,      T* = argmin_T NLL(p_T)

One T for all draws, fitted to the mixture that it gives. It differs from a temperature of the mixture
(:mod:`vlora.eval.metrics.temperature`): draws that are sure of different answers stay a mixture of both, and what is
tempered are still S distributions, whose entropy can be split. Which of the two is better calibrated depends on the
draws (Rahaman & Thiery 2021, arXiv:2007.08792, favour averaging first; Wu & Gales 2021, arXiv:2101.05397).

The NLL of this mixture is not convex in 1/T. The fit takes the best of a grid over the bounds, which has T = 1 in it,
and refines it between its neighbours by golden section.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, labels, log_prob_array, numbers
from vlora.eval.metrics.intervals import Counts, Interval, bootstrap, percentile_interval
from vlora.eval.metrics.temperature import TEMPERATURE_BOUNDS, TemperatureFit, temper, temperature_from_grid

__all__ = ["draw_temperature_interval", "draw_temperatures", "fit_draw_temperature", "temper_draws"]

_GRID: Array = np.geomspace(TEMPERATURE_BOUNDS[0], TEMPERATURE_BOUNDS[1], 121)
_GOLDEN = (5**0.5 - 1) / 2
_STEPS = 30  # of golden section: two grid steps shrink to 1e-7 in log T
_TINY = 1e-300


def temper_draws(sample_log_probs: Any, temperature: float) -> Array:
    """Log-probabilities of every draw at one temperature.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        temperature: T > 0; above 1 flattens.

    Returns:
        Normalised log-probabilities of shape ``(S, N, K)``.

    Raises:
        DataError: Wrong shape, NaN, or T <= 0.
    """
    samples = log_prob_array("sample_log_probs", sample_log_probs, 3)
    return temper(samples.reshape(-1, samples.shape[2]), temperature).reshape(samples.shape)


def fit_draw_temperature(sample_log_probs: Any, label: Any) -> TemperatureFit:
    """Temperature of the draws at which their average has the smallest NLL on held-out items.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        The fit; ``at_bound`` says when the data does not determine it, T is 1 where no label is possible.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    samples, label, keep = _possible(sample_log_probs, label)
    impossible = int((~keep).sum())
    if not len(label):
        return TemperatureFit(1.0, float("inf"), True, impossible)

    def nll(log_temperature: float) -> float:
        return float(_nll(samples, label, float(np.exp(log_temperature))).mean())

    grid = np.log(_GRID)
    best = int(np.argmin([nll(place) for place in grid]))
    if best in (0, len(grid) - 1):
        return TemperatureFit(float(_GRID[best]), nll(grid[best]), True, impossible)
    low, high = grid[best - 1], grid[best + 1]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = nll(left), nll(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = nll(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = nll(right)
    place = (low + high) / 2
    return TemperatureFit(float(np.exp(place)), nll(place), False, impossible)


def draw_temperature_interval(sample_log_probs: Any, label: Any, counts: Counts) -> Interval:
    """The fitted temperature of the draws with a bootstrap interval over the held-out items.

    The refits read the minimum off the grid (parabola through its best three points); the value itself is the full fit.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        label: Index of the right choice, shape ``(N,)``.
        counts: Resamples of the N items, shape ``(B, N)``.

    Returns:
        T* with its interval, without one where no label is possible.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    value = fit_draw_temperature(sample_log_probs, label).temperature
    samples, label, keep = _possible(sample_log_probs, label)
    if not len(label):
        return Interval(value, float("nan"), float("nan"), len(keep))
    table = np.stack([_nll(samples, label, temperature) for temperature in _GRID], axis=1)
    summed = bootstrap(lambda weights: weights[:, keep] @ table, counts)
    return percentile_interval(value, np.array([_lowest(row) for row in summed]), len(keep))


def draw_temperatures(sample_log_probs: Any, label: Any, weights: Any) -> Array:
    """Temperatures for resampled draws, read off the grid.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        label: Index of the right choice, shape ``(N,)``.
        weights: Weights of the draws in every resample, rows summing to one, shape ``(R, S)``.

    Returns:
        T* of every resample, ``(R,)``; 1 where its draws make no label possible.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    samples, label, _ = _possible(sample_log_probs, label)
    weights = numbers("weights", weights)
    if weights.ndim != 2 or weights.shape[1] != len(samples):
        raise DataError(f"weights must have shape (R, {len(samples)}), got {weights.shape}")
    if not len(label):
        return np.ones(len(weights))
    summed, possible = [], np.zeros(len(weights), dtype=bool)
    for temperature in _GRID:  # one temperature at a time: (R, N) numbers are held
        right = _label_log_probs(samples, label, temperature)
        top = right.max(axis=0)
        # Far below the best draw still counts as possible: a resample may leave that draw out.
        shares = np.where(np.isneginf(right), 0.0, np.maximum(np.exp(right - top), _TINY))
        with np.errstate(divide="ignore"):  # every draw that makes a label possible was left out
            found = -np.log(weights @ shares) - top
        finite = np.isfinite(found)
        possible |= finite.any(axis=1)
        summed.append(np.where(finite, found, 0.0).sum(axis=1))
    lowest = np.array([_lowest(row) for row in np.stack(summed, axis=1)])
    return np.where(possible, lowest, 1.0)


def _nll(samples: Array, label: IntArray, temperature: float) -> Array:
    """NLL of every item under the average of the tempered draws, ``(N,)``."""
    right = _label_log_probs(samples, label, temperature)
    top = right.max(axis=0)
    return -top - np.log(np.exp(right - top).mean(axis=0))


def _label_log_probs(samples: Array, label: IntArray, temperature: float) -> Array:
    """Log-probability of every right choice under every tempered draw, ``(S, N)``."""
    scaled = (samples - samples.max(axis=2, keepdims=True)) / temperature
    return scaled[:, np.arange(len(label)), label] - np.log(np.exp(scaled).sum(axis=2))


def _possible(sample_log_probs: Any, label: Any) -> tuple[Array, IntArray, NDArray[np.bool_]]:
    """Items whose label some draw makes possible, and which these are: no temperature changes the others."""
    samples = log_prob_array("sample_log_probs", sample_log_probs, 3)
    label = labels(label, samples[0])
    keep = np.isfinite(samples[:, np.arange(len(label)), label].max(axis=0))
    return samples[:, keep], label[keep], keep


def _lowest(nll: Array) -> float:
    return temperature_from_grid(_GRID, nll).temperature
