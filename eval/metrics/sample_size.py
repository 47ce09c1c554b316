"""How many items, or posterior draws, would show a difference or narrow an interval.

    paired means       n = ((z_level + z_power) sd / effect)^2
    paired accuracies  n = (z_level sqrt(psi) + z_power sqrt(psi - effect^2))^2 / effect^2      (Connor 1987)
    one interval       half width = z (var_items / n + var_draws / S)^(1/2)

z_level is the normal quantile of (1 + level) / 2, z_power that of the power; psi the share of items that only one model
answers right (doi:10.2307/2531961). Normal approximations: exact enough for planning, from some tens of items on.
"""

import math
from statistics import NormalDist
from typing import Any

from vlora.errors import DataError
from vlora.eval.metrics.arrays import vector

__all__ = ["draws_for_width", "items_for_accuracy", "items_for_mean", "items_for_width"]

_RESIDUE = 1e-9  # what a difference of two floating-point means may be off by


def items_for_mean(
    differences: Any, effect: float | None = None, *, power: float = 0.8, level: float = 0.95
) -> int:
    """Items needed to find a mean difference as large as ``effect`` with a paired test.

    Args:
        differences: Metric of a minus metric of b on items at hand, for their spread. Shape ``(N,)``, N >= 2.
        effect: Difference to be found; None takes the mean at hand.
        power: Chance of finding it, in (0, 1).
        level: 1 minus the level of the two-sided test, in (0, 1).

    Returns:
        Number of items, at least 2.

    Raises:
        DataError: Fewer than two items, NaN, an effect of zero, or shares outside (0, 1).
    """
    differences = vector("differences", differences)
    if len(differences) < 2:
        raise DataError("the spread of differences needs at least 2 items, got 1")
    size = _effect(float(differences.mean()) if effect is None else effect)
    ratio = _z(level, two_sided=True) + _z(power)
    return max(math.ceil((ratio * float(differences.std(ddof=1)) / size) ** 2), 2)


def items_for_accuracy(discordant: float, effect: float, *, power: float = 0.8, level: float = 0.95) -> int:
    """Items needed for McNemar's test to find a difference of accuracies.

    Args:
        discordant: Share of items that exactly one model answers right, in (0, 1].
        effect: Difference of the accuracies; cannot be larger than ``discordant``.
        power: Chance of finding it, in (0, 1).
        level: 1 minus the level of the two-sided test, in (0, 1).

    Returns:
        Number of items.

    Raises:
        DataError: An effect of zero or above the discordant share, or shares outside (0, 1).
    """
    size = _effect(effect)
    if discordant < size <= discordant + _RESIDUE:
        size = (
            discordant  # all discordant items favour one model, and the difference of two means has a residue
        )
    if not size <= discordant <= 1:
        raise DataError(
            f"the accuracies differ by {size:.3g} at most where {discordant:.3g} of the items are discordant"
        )
    root = _z(level, two_sided=True) * discordant**0.5 + _z(power) * (discordant - size**2) ** 0.5
    return math.ceil((root / size) ** 2)


def items_for_width(
    half_width: float,
    item_error: float,
    num_items: int,
    draw_error: float = 0.0,
    *,
    level: float = 0.95,
) -> int | None:
    """Items that bring an interval down to a half width, with the posterior draws left as they are.

    Args:
        half_width: Half width wanted, > 0.
        item_error: Standard error from the items at hand.
        num_items: Number of them.
        draw_error: Standard error from the draws, which more items do not reduce.
        level: Coverage of the interval.

    Returns:
        Number of items; None when the draws alone are too uncertain.

    Raises:
        DataError: A half width or a number that is not positive, or a negative error.
    """
    return _needed(half_width, item_error, num_items, draw_error, level)


def draws_for_width(
    half_width: float,
    draw_error: float,
    num_draws: int,
    item_error: float = 0.0,
    *,
    level: float = 0.95,
) -> int | None:
    """Posterior draws that bring an interval down to a half width, with the items left as they are.

    Args:
        half_width: Half width wanted, > 0.
        draw_error: Standard error from the draws at hand.
        num_draws: Number of them (of pairs, when they are antithetic).
        item_error: Standard error from the items, which more draws do not reduce.
        level: Coverage of the interval.

    Returns:
        Number of draws; None when the items alone are too few.

    Raises:
        DataError: A half width or a number that is not positive, or a negative error.
    """
    return _needed(half_width, draw_error, num_draws, item_error, level)


def _needed(half_width: float, error: float, number: int, fixed: float, level: float) -> int | None:
    """Number at which z (error^2 number / x + fixed^2)^(1/2) is the half width."""
    if not half_width > 0 or number < 1 or error < 0 or fixed < 0:
        raise DataError(
            f"expected half_width > 0, errors >= 0 and at least 1 unit, got {half_width}, {error}, {fixed}, {number}"
        )
    left = (half_width / _z(level, two_sided=True)) ** 2 - fixed**2
    return None if left <= 0 else max(math.ceil(error**2 * number / left - 1e-9), 1)


def _effect(effect: float) -> float:
    if not abs(effect) > 0:
        raise DataError(
            "the effect is 0, which no number of items can show; give the smallest one that matters"
        )
    return abs(effect)


def _z(share: float, two_sided: bool = False) -> float:
    if not 0 < share < 1:
        raise DataError(f"level and power must lie in (0, 1), got {share}")
    return NormalDist().inv_cdf((1 + share) / 2 if two_sided else share)
