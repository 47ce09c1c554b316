"""Intervals of a posterior-averaged predictor: new items *and* new posterior draws, crossed.

A metric of the mixture of S draws varies for two reasons. Every draw meets every item, so the two sources are crossed:

    Var(metric) ~ Var_items + Var_draws             (two-way layout; Owen 2007, doi:10.1214/07-AOAS122)

Items are resampled with the draws as they are, draws with the items as they are, and the deviations of the two are
added. Resampling S draws with replacement has two known faults, both mended here: it leaves fewer different draws,
which shifts metrics that are not linear in the probabilities (the mean of the draw replicates is taken out), and its
variance is short by (S - 1) / S (deviations are scaled up). Antithetic draws 2j and 2j+1 are resampled as pairs, so S
counts pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, normalised, numbers, vector
from vlora.eval.metrics.intervals import Interval, percentile_interval

__all__ = [
    "DRAW_RESAMPLES",
    "CrossedInterval",
    "crossed_bootstrap",
    "crossed_fields",
    "crossed_interval",
    "draw_deviations",
    "draw_spread",
    "draw_weights",
    "weighted_mixture",
]


DRAW_RESAMPLES = 200
"""Resamples of the draws, where they are not too costly."""


@dataclass(frozen=True)
class CrossedInterval:
    """A metric of a sampled predictor with the error of items and of draws."""

    interval: Interval
    """The value with the interval that holds for new items and new draws."""
    item_error: float
    """Standard error from the items."""
    draw_error: float
    """Standard error from the draws; NaN when there is one draw, or one antithetic pair."""


def draw_weights(
    num_draws: int, num_resamples: int = DRAW_RESAMPLES, *, antithetic: bool = False, seed: int = 0
) -> Array:
    """Bootstrap weights of posterior draws.

    Args:
        num_draws: S.
        num_resamples: R, number of resamples.
        antithetic: Draws 2j and 2j+1 mirror each other and stay together.
        seed: Seed of numpy's ``default_rng``.

    Returns:
        Weights of shape ``(R, S)``, rows summing to one.

    Raises:
        DataError: No draw or resample, or an odd number of antithetic draws.
    """
    if num_draws < 1 or num_resamples < 1 or (antithetic and num_draws % 2):
        raise DataError(
            f"expected at least 1 resample and draw, antithetic ones in pairs, got {num_resamples} and {num_draws}"
        )
    units = num_draws // 2 if antithetic else num_draws
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), num_resamples)
    return np.repeat(counts / units, num_draws // units, axis=1) / (num_draws // units)


def weighted_mixture(sample_log_probs: Any, weights: Any) -> Array:
    """Log of the weighted mean probability over draws, log sum_s w_s p_s(k).

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        weights: Weights of the draws, summing to one. Shape ``(S,)``.

    Returns:
        Log-probabilities of shape ``(N, K)``.

    Raises:
        DataError: Wrong shapes, NaN, or rows or weights that do not sum to one.
    """
    samples, weights = normalised("sample_log_probs", sample_log_probs, 3), vector("weights", weights)
    if len(weights) != len(samples) or weights.min() < 0 or abs(weights.sum() - 1) > 1e-6:
        raise DataError(
            f"weights must be {len(samples)} numbers >= 0 that sum to 1, got {len(weights)} of sum {weights.sum():.4g}"
        )
    used = weights > 0
    samples, weights = samples[used], weights[used]
    top = samples.max(axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.tensordot(weights, np.exp(samples - shift), axes=1))


def crossed_interval(
    value: float,
    item_replicates: Any,
    draw_replicates: Any,
    n: int,
    num_units: int,
    level: float = 0.95,
) -> CrossedInterval:
    """Interval of a metric over items crossed with draws.

    Args:
        value: The metric on all items and draws.
        item_replicates: The metric on resamples of the items, with all draws. Shape ``(B,)``.
        draw_replicates: The metric on resamples of the draws, with all items. Shape ``(R,)``; each deviation meets
            B / R of the item replicates.
        n: Items that were resampled.
        num_units: Draws that were resampled, pairs where they are antithetic.
        level: Coverage of the interval.

    Returns:
        The interval with both standard errors; with a single unit the draws' error is unknown, and so is the interval.
    """
    items = numbers("item_replicates", item_replicates)
    if num_units < 2:
        nothing = Interval(value, float("nan"), float("nan"), n)
        return CrossedInterval(nothing, _spread(items), float("nan"))
    deviation = draw_deviations(draw_replicates, num_units)
    total = items + np.resize(deviation, len(items))
    return CrossedInterval(percentile_interval(value, total, n, level), _spread(items), _spread(deviation))


def crossed_fields(
    found: Mapping[str, Any], item_replicates: Any, draw_replicates: Any, n: int, num_units: int
) -> dict[str, float | None]:
    """What the draws add to an entry of results; None for what is not defined.

    Args:
        found: The entry; nothing is added to one without a ``value``.
        item_replicates: As of :func:`crossed_interval`.
        draw_replicates: As there.
        n: As there.
        num_units: As there.

    Returns:
        ``item_error`` and ``draw_error`` (standard errors), ``crossed_low`` and ``crossed_high``.
    """
    if found["value"] is None:
        return {}
    crossed = crossed_interval(found["value"], item_replicates, draw_replicates, n, num_units)
    fields = {
        "item_error": crossed.item_error,
        "draw_error": crossed.draw_error,
        "crossed_low": crossed.interval.low,
        "crossed_high": crossed.interval.high,
    }
    return {name: float(value) if np.isfinite(value) else None for name, value in fields.items()}


def draw_deviations(draw_replicates: Any, num_units: int) -> Array:
    """Deviations that the draws add to a metric: centred replicates, scaled up by (S / (S - 1))^(1/2).

    Args:
        draw_replicates: The metric on resamples of the draws, with all items. Shape ``(R,)``.
        num_units: Draws that were resampled, pairs where they are antithetic; at least 2.
    """
    draws = numbers("draw_replicates", draw_replicates)
    return (draws - _mean(draws)) * (num_units / (num_units - 1)) ** 0.5


def draw_spread(draw_replicates: Any, num_units: int) -> float | None:
    """Standard error from the draws alone; None where one draw, or one pair, does not tell. Arguments as above.

    Args:
        draw_replicates: The metric on resamples of the draws, ``(R,)``.
        num_units: Draws that were resampled, pairs where they are antithetic.
    """
    if num_units < 2:
        return None
    spread = _spread(draw_deviations(draw_replicates, num_units))
    return spread if np.isfinite(spread) else None


def crossed_bootstrap(
    metric: Callable[[Array], float],
    sample_log_probs: Any,
    item_replicates: Any,
    *,
    antithetic: bool = False,
    num_resamples: int = DRAW_RESAMPLES,
    seed: int = 0,
) -> CrossedInterval:
    """Interval of a metric of the mixture of draws, over items crossed with draws.

    Args:
        metric: Maps log-probabilities ``(N, K)`` of a predictor to the metric on all items.
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        item_replicates: The metric of the mixture of all draws on resamples of the items, shape ``(B,)``.
        antithetic: Draws 2j and 2j+1 mirror each other.
        num_resamples: Resamples of the draws.
        seed: Seed of numpy's ``default_rng``.

    Returns:
        The interval with both standard errors.

    Raises:
        DataError: Wrong shapes, NaN, rows that do not sum to one, or an odd number of antithetic draws.
    """
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    num_draws = len(samples)
    weights = draw_weights(num_draws, num_resamples, antithetic=antithetic, seed=seed)
    replicates = [metric(weighted_mixture(samples, row)) for row in weights]
    value = metric(weighted_mixture(samples, np.full(num_draws, 1 / num_draws)))
    units = num_draws // 2 if antithetic else num_draws
    return crossed_interval(value, item_replicates, replicates, samples.shape[1], units)


def _mean(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _spread(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
