"""Single tests of a comparison, as ``vlora compare --json`` prints them; the same for choices and for answers.

Every function takes both sides on the same items, a the later and b the earlier one, and returns one entry: ``metric``,
``test``, ``a``, ``b``, ``difference`` (a - b) with ``low`` and ``high`` (95 %), ``p``, the standard errors, and what it
would take to show a difference of this size.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.delong import compare_auroc
from vlora.eval.metrics.intervals import Counts, bootstrap, percentile_interval
from vlora.eval.metrics.paired_tests import bootstrap_p_value, mcnemar
from vlora.eval.metrics.sample_size import draws_for_width, items_for_accuracy
from vlora.eval.tables import finite_or_none

__all__ = [
    "LEVEL",
    "Statistic",
    "bootstrap_entry",
    "bootstrap_test",
    "delong_test",
    "draws_needed",
    "items_needed",
    "mcnemar_fields",
    "minus",
    "ratio_of",
    "spread",
]

LEVEL = 0.95
"""Coverage of all intervals."""
_POWER = 0.8

Statistic = Callable[[Array], Array]
"""A metric of weighted items: weights ``(B, N)`` to values ``(B,)``."""


def bootstrap_test(
    metric: str,
    statistics: Sequence[Statistic],
    counts: Counts,
    *,
    higher: bool,
    deviation: Array | None = None,
    units: int = 0,
) -> dict[str, Any]:
    """Paired bootstrap of one metric: items are resampled for both sides at once.

    Args:
        metric: Its name.
        statistics: The metric of a and of b.
        counts: Resamples of the items, ``(B, N)``.
        higher: Whether higher is better.
        deviation: What resampled draws add to the difference, ``(R,)``, crossed with the items; None without draws, or
            where it is not known.
        units: The fewest draws of a side that were resampled, pairs where they mirror each other.
    """
    size = counts.shape[1]
    values = [float(statistic(np.ones((1, size)))[0]) for statistic in statistics]
    items = bootstrap(minus(*statistics), counts)
    return bootstrap_entry(metric, values, items, size, higher=higher, deviation=deviation, units=units)


def bootstrap_entry(
    metric: str,
    values: Sequence[float],
    items: Array,
    size: int,
    *,
    higher: bool,
    deviation: Array | None = None,
    units: int = 0,
) -> dict[str, Any]:
    """The test that a paired bootstrap gives: difference, interval over items and draws, p-value, what it would take.

    Args:
        metric: Its name.
        values: The metric of a and of b.
        items: The difference on resampled items, ``(B,)``.
        size: Number of items.
        higher: As for :func:`bootstrap_test`.
        deviation: As there; one that is not finite counts as not known.
        units: As there.
    """
    draw_error = _draw_error(deviation)
    replicates = items
    if deviation is not None and draw_error is not None:
        replicates = items + np.resize(deviation, len(items))
    difference = values[0] - values[1]
    found, error = percentile_interval(difference, replicates, size), spread(items)
    return {
        **{"metric": metric, "test": "paired bootstrap", "higher_is_better": higher},
        **{"a": finite_or_none(values[0]), "b": finite_or_none(values[1])},
        **{"difference": finite_or_none(difference), "low": finite_or_none(found.low)},
        **{"high": finite_or_none(found.high)},
        "p": finite_or_none(bootstrap_p_value(replicates)) if np.isfinite(difference) else None,
        **{"item_error": finite_or_none(error), "draw_error": draw_error},
        "draws_needed": draws_needed(difference, error, draw_error, units),
        "items_needed": items_needed(difference, error, size),
    }


def _draw_error(deviation: Array | None) -> float | None:
    """Standard error from the draws; None where it is not known."""
    return None if deviation is None or not np.isfinite(deviation).all() else spread(deviation)


def mcnemar_fields(right_a: Array, right_b: Array) -> dict[str, Any]:
    """What McNemar's exact test puts in place of the bootstrap's p-value; the difference is that of the counts.

    Args:
        right_a: 1 where a is right, else 0. Shape ``(N,)``.
        right_b: The same of b.
    """
    found, size = mcnemar(right_a, right_b), len(right_a)
    discordant, effect = (found.only_a + found.only_b) / size, (found.only_a - found.only_b) / size
    needed = items_for_accuracy(discordant, effect, power=_POWER, level=LEVEL) if effect else None
    return {
        **{"test": "McNemar exact", "p": found.p_value, "mid_p": found.mid_p, "items_needed": needed},
        **{"difference": effect, "only_a": found.only_a, "only_b": found.only_b},
    }


def delong_test(
    metric: str,
    score_a: Array,
    score_b: Array,
    positive: Array,
    *,
    deviation: Array | None = None,
    units: int = 0,
) -> dict[str, Any]:
    """DeLong's test of two scores for one question on the same items, with the variance of the draws added to its own.

    Args:
        metric: Its name.
        score_a: Uncertainty by a, ``(N,)``.
        score_b: Uncertainty by b.
        positive: 1 for items that should look uncertain, shared by both; two or more of either class.
        deviation: What resampled draws add to the difference of the areas, as for :func:`bootstrap_test`.
        units: As there.
    """
    draw_error = _draw_error(deviation)
    found = compare_auroc(score_a, score_b, positive, draw_error=draw_error or 0.0)
    error = found.standard_error
    return {
        **{"metric": metric, "test": "DeLong", "higher_is_better": True},
        **{"a": found.auroc_a, "b": found.auroc_b, "difference": found.difference},
        **{"low": found.low, "high": found.high, "p": found.p_value},
        **{"item_error": error, "draw_error": draw_error},
        "draws_needed": draws_needed(found.difference, error, draw_error, units),
        "items_needed": items_needed(found.difference, error, len(positive)),
    }


def ratio_of(top: Array, bottom: Array) -> Statistic:
    """A sum over a sum, NaN where the lower one is 0."""

    def statistic(weights: Array) -> Array:
        below = weights @ bottom
        return np.divide(weights @ top, below, out=np.full_like(below, np.nan), where=below != 0)

    return statistic


def minus(first: Statistic, second: Statistic) -> Statistic:
    """The difference of two statistics."""
    return lambda weights: first(weights) - second(weights)


def items_needed(difference: float, item_error: float, size: int) -> int | None:
    """Items that would show a difference of this size with 80 % power, its standard error falling as 1/sqrt(n)."""
    if not difference or not math.isfinite(difference) or not math.isfinite(item_error):
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(_POWER)
    return max(math.ceil(size * (reach * item_error / difference) ** 2), 2)


def draws_needed(difference: float, item_error: float, draw_error: float | None, units: int) -> int | None:
    """Draws (pairs, where antithetic) whose interval would exclude 0; None where the items alone are too wide."""
    if not draw_error or not difference or not math.isfinite(difference) or not math.isfinite(item_error):
        return None
    return draws_for_width(abs(difference), draw_error, units, item_error, level=LEVEL)


def spread(values: Array) -> float:
    """Standard deviation of the values that are defined."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
