"""What posterior draws add to the difference of two models on the same items.

Draws are resampled on either side, and the deviations of a metric subtracted. Draw k of two posteriors of one layout
and seed uses the same random numbers: where both sides have equally many, draw numbers are resampled jointly, so what
the draws have in common cancels; otherwise apart (:mod:`vlora.eval.metrics.crossed`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.crossed import draw_deviations, draw_weights

__all__ = ["RESAMPLES", "DrawnSide", "are_paired", "pair_deviations"]

RESAMPLES = 200
"""Resamples of the draws."""


@dataclass(frozen=True)
class DrawnSide:
    """Draws of one model of a pair."""

    num_draws: int
    """S."""
    antithetic: bool
    """Whether draws 2j and 2j+1 mirror each other."""
    replicates: Callable[[Array], Array]
    """Weights of resampled draws ``(R, S)`` to a metric ``(R,)``, or M of them ``(R, M)``, on all items."""

    @property
    def num_units(self) -> int:
        """Independent draws, pairs where they are antithetic."""
        return self.num_draws // 2 if self.antithetic else self.num_draws


def are_paired(sides: Sequence[DrawnSide | None]) -> bool:
    """Whether both sides have draws of one layout."""
    layouts = [None if side is None else (side.num_draws, side.antithetic) for side in sides]
    return None not in layouts and len(set(layouts)) == 1


def pair_deviations(sides: Sequence[DrawnSide | None], seed: int) -> tuple[Array | None, int]:
    """Deviations that draws add to the metric of a minus that of b.

    Args:
        sides: Draws of a and of b; None for a side without any.
        seed: Seed of the resampling.

    Returns:
        ``(R,)`` or ``(R, M)``, and the fewest draws of a side, pairs where they mirror each other. None and 0 where no
        side has draws, None and 1 where one side has a single unit, which tells nothing of its error.
    """
    drawn = [(place, side) for place, side in enumerate(sides) if side is not None]
    units = min((side.num_units for _, side in drawn), default=0)
    if units < 2:
        return None, units
    parts, paired = [], are_paired(sides)
    for place, side in drawn:
        own = seed if paired else seed + place  # other numbers of draws are resampled apart
        weights = draw_weights(side.num_draws, RESAMPLES, antithetic=side.antithetic, seed=own)
        parts.append((1 - 2 * place) * _moved(side.replicates(weights), side.num_units))
    return np.sum(parts, axis=0), units


def _moved(replicates: Array, num_units: int) -> Array:
    """Deviations of one metric ``(R,)``, or of every column of ``(R, M)``."""
    if replicates.ndim == 1:
        return draw_deviations(replicates, num_units)
    return np.stack([draw_deviations(column, num_units) for column in replicates.T], axis=1)
