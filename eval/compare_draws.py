"""What posterior draws add to the difference of two models on the same items.

Draws are resampled on either side, and the deviations of a metric subtracted. Draw k of two posteriors of one layout
and seed uses the same random numbers: where both sides have equally many, draw numbers are resampled jointly, so what
the draws have in common cancels; otherwise apart (:mod:`vlora.eval.metrics.crossed`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.crossed import draw_deviations, draw_weights
from vlora.eval.tables import DrawReplicates

__all__ = ["DrawnSide", "are_paired", "joined_deviations", "pair_deviations", "paired_sides", "side_seeds"]


@dataclass(frozen=True)
class DrawnSide:
    """Draws of one model of a pair."""

    num_draws: int
    """S."""
    antithetic: bool
    """Whether draws 2j and 2j+1 mirror each other."""
    replicates: Callable[[Array], Mapping[str, Array]]
    """Weights of resampled draws ``(R, S)`` to metrics on all items by name, ``(R,)`` each."""

    @property
    def layout(self) -> tuple[int, bool]:
        """What two sides must share for their draws to be resampled jointly."""
        return self.num_draws, self.antithetic

    @property
    def num_units(self) -> int:
        """Independent draws, pairs where they are antithetic."""
        return self.num_draws // 2 if self.antithetic else self.num_draws

    def moved(self, seed: int) -> DrawReplicates:
        """The metrics on resampled draws."""
        weights = draw_weights(self.num_draws, antithetic=self.antithetic, seed=seed)
        return DrawReplicates(self.replicates(weights), self.num_units)


def are_paired(layouts: Sequence[tuple[int, bool] | None]) -> bool:
    """Whether both sides have draws of one layout; None stands for a side without draws."""
    return None not in layouts and len(set(layouts)) == 1


def paired_sides(sides: Sequence[DrawnSide | None]) -> bool:
    """The same of the sides themselves."""
    return are_paired(_layouts(sides))


def _layouts(sides: Sequence[DrawnSide | None]) -> list[tuple[int, bool] | None]:
    return [None if side is None else side.layout for side in sides]


def side_seeds(layouts: Sequence[tuple[int, bool] | None], seed: int) -> list[int]:
    """Seed of the resampling of either side: one seed resamples the same draw numbers of both."""
    return [seed, seed if are_paired(layouts) else seed + 1]


def pair_deviations(sides: Sequence[DrawnSide | None], seed: int) -> tuple[dict[str, Array], int]:
    """Deviations that draws add to the metrics of a minus those of b.

    Args:
        sides: Draws of a and of b; None for a side without any.
        seed: Seed of the resampling.

    Returns:
        As of :func:`joined_deviations`.
    """
    units = min((side.num_units for side in sides if side is not None), default=0)
    if units < 2:
        return {}, units
    seeds = side_seeds(_layouts(sides), seed)
    return joined_deviations(
        [None if side is None else side.moved(own) for side, own in zip(sides, seeds, strict=True)]
    )


def joined_deviations(sides: Sequence[DrawReplicates | None]) -> tuple[dict[str, Array], int]:
    """Deviations of a less those of b, from their metrics on resampled draws.

    Args:
        sides: Of a and of b; None for a side without draws.

    Returns:
        ``(R,)`` by metric that all of them have, and the fewest draws of a side, pairs where they mirror each other.
        Nothing and 0 where no side has draws, nothing and 1 where one side has a single unit, which tells nothing of
        its error.
    """
    drawn = [(sign, side) for sign, side in zip((1, -1), sides, strict=True) if side is not None]
    units = min((side.num_units for _, side in drawn), default=0)
    if units < 2:
        return {}, units
    shared = [name for name in drawn[0][1].numbers if all(name in side.numbers for _, side in drawn)]
    return {name: _joined(name, drawn) for name in shared}, units


def _joined(name: str, drawn: Sequence[tuple[int, DrawReplicates]]) -> Array:
    parts = [sign * draw_deviations(side.numbers[name], side.num_units) for sign, side in drawn]
    size = min(map(len, parts))  # fewer resamples of one seed are the first of more
    return np.sum([part[:size] for part in parts], axis=0)
