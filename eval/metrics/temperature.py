"""Temperature scaling: one number, fitted on held-out labels, as the baseline that every posterior must beat.

    p_T(k | x) ~ p(k | x)^(1/T),      T* = argmin_T NLL(p_T)        (Guo et al. 2017, arXiv:1706.04599, sec. 4.2)

It works on log-probabilities, which differ from logits by a constant per item that the normalisation removes,
and therefore on the mixture of posterior draws (log p_bar) just as well. The NLL is convex in 1/T, so its slope
changes sign once, and bisection on log T finds the minimum to full precision without step sizes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, labels, log_prob_array, numbers
from vlora.eval.metrics.intervals import Counts, Interval, bootstrap, percentile_interval
from vlora.eval.metrics.proper_scores import negative_log_likelihood

__all__ = [
    "TEMPERATURE_BOUNDS",
    "TemperatureFit",
    "fit_temperature",
    "temper",
    "temperature_from_grid",
    "temperature_interval",
]

TEMPERATURE_BOUNDS = (0.02, 50.0)
"""Temperatures that a fit may return."""

_GRID_POINTS = 241


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature that minimises a held-out NLL."""

    temperature: float
    """T*; above 1 the model was over-confident."""
    nll: float
    """NLL at T*, nats per item, over items whose label is possible; infinite where there is none."""
    at_bound: bool
    """The minimum lies outside the bounds, as when every held-out answer is right, or there is none."""
    num_infinite: int = 0
    """Items whose label has probability zero, which no temperature changes; they are not in ``nll``."""


def temperature_from_grid(temperatures: Any, nll: Any) -> TemperatureFit:
    """Temperature with the smallest NLL where it is known on a grid only, as for tokens over a large vocabulary.

    The minimum of the parabola in log T through the best point of the grid and its neighbours.

    Args:
        temperatures: Three or more positive temperatures, rising, ``(G,)``.
        nll: NLL at each of them, ``(G,)``.

    Raises:
        DataError: Not such a grid, or an NLL that is not finite.
    """
    grid, value = numbers("temperatures", temperatures), numbers("nll", nll)
    if grid.ndim != 1 or len(grid) < 3 or value.shape != grid.shape or not (grid > 0).all():
        raise DataError(
            f"expected the NLL at three or more temperatures, got shapes {grid.shape}, {value.shape}"
        )
    if (np.diff(grid) <= 0).any() or not np.isfinite(value).all():
        raise DataError("temperatures must rise and their NLL be finite")
    best = int(value.argmin())
    if best in (0, len(grid) - 1):
        return TemperatureFit(float(grid[best]), float(value[best]), True)
    parabola = np.polynomial.Polynomial.fit(np.log(grid[best - 1 : best + 2]), value[best - 1 : best + 2], 2)
    curved = float(parabola.deriv(2)(0.0)) > 0
    place = float(parabola.deriv().roots()[0].real) if curved else float(np.log(grid[best]))
    return TemperatureFit(float(np.exp(place)), float(parabola(place)), False)


def temper(log_probs: Any, temperature: float) -> Array:
    """Log-probabilities at a temperature, log softmax(log_probs / T).

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        temperature: T > 0; above 1 flattens.

    Returns:
        Normalised log-probabilities of shape ``(N, K)``.

    Raises:
        DataError: Wrong shape, NaN, or T <= 0.
    """
    if not temperature > 0:
        raise DataError(f"temperature must be > 0, got {temperature}")
    scaled = log_prob_array("log_probs", log_probs, 2) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def _possible(log_probs: Any, label: Any) -> tuple[Array, IntArray]:
    """Items whose label has a probability above zero: no temperature changes the others."""
    log_probs = log_prob_array("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    keep = np.isfinite(log_probs[np.arange(len(label)), label])
    return log_probs[keep], label[keep]


def _slope(log_probs: Array, label: IntArray, log_temperature: float) -> Array:
    """Slope d NLL / d log T per item, (log p(y) - E_{p_T} log p) / T: its mean rises through zero at the minimum."""
    beta = np.exp(-log_temperature)
    probs = np.exp(temper(log_probs, 1 / beta))
    expected = (probs * np.where(probs > 0, log_probs, 0.0)).sum(axis=1)
    return beta * (log_probs[np.arange(len(label)), label] - expected)


def fit_temperature(log_probs: Any, label: Any) -> TemperatureFit:
    """Temperature with the smallest NLL on held-out items.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``: of the mean, or of the mixture of draws.
        label: Index of the right choice, shape ``(N,)``.

    Returns:
        The fit; ``at_bound`` says when the data does not determine it, T is 1 where no label is possible.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    size = len(log_prob_array("log_probs", log_probs, 2))
    log_probs, label = _possible(log_probs, label)
    if not len(label):
        return TemperatureFit(1.0, float("inf"), True, size)
    low, high = np.log(TEMPERATURE_BOUNDS)
    if _slope(log_probs, label, low).mean() >= 0:
        best, at_bound = low, True
    elif _slope(log_probs, label, high).mean() <= 0:
        best, at_bound = high, True
    else:
        at_bound = False
        for _ in range(50):
            best = (low + high) / 2
            low, high = (best, high) if _slope(log_probs, label, best).mean() < 0 else (low, best)
        best = (low + high) / 2
    temperature = float(np.exp(best))
    nll = negative_log_likelihood(temper(log_probs, temperature), label).mean
    return TemperatureFit(temperature, nll, at_bound, size - len(label))


def temperature_interval(log_probs: Any, label: Any, counts: Counts) -> Interval:
    """The fitted temperature with a bootstrap interval over the held-out items.

    The refits read the zero of the resampled slope off a grid in log T (linear in between), so all B of them are one
    matrix product; the value itself is the exact fit.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right choice, shape ``(N,)``.
        counts: Resamples of the N items, shape ``(B, N)``.

    Returns:
        T* with its interval; bounds of the search where a resample does not determine T; without an interval where no
        label is possible.

    Raises:
        DataError: Shapes differ, NaN, or a label out of range.
    """
    value = fit_temperature(log_probs, label).temperature
    full = log_prob_array("log_probs", log_probs, 2)
    keep = np.isfinite(full[np.arange(len(full)), label])
    if not keep.any():
        return Interval(value, float("nan"), float("nan"), len(full))
    log_probs, label = _possible(log_probs, label)
    low, high = np.log(TEMPERATURE_BOUNDS)
    grid = np.linspace(low, high, _GRID_POINTS)
    # In beta = 1/T the mean slope is monotone, so signs change once along the grid.
    slopes = np.stack([_slope(log_probs, label, t) * np.exp(t) for t in grid], axis=1)
    summed = bootstrap(lambda weights: weights[:, keep] @ slopes, counts)
    return percentile_interval(value, np.exp(_zero_crossing(grid, summed)), len(full))


def _zero_crossing(grid: Array, values: Array) -> Array:
    """First zero of rising rows ``values`` ``(B, G)`` over ``grid`` ``(G,)``, clipped to its ends."""
    above = np.clip((values < 0).sum(axis=1), 1, len(grid) - 1)
    rows = np.arange(len(values))
    left, right = values[rows, above - 1], values[rows, above]
    share = np.divide(-left, right - left, out=np.zeros_like(left), where=right > left)
    return grid[above - 1] + np.clip(share, 0.0, 1.0) * np.diff(grid)[above - 1]
