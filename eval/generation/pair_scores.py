"""Scores and confidences of two models that answered the same questions, with the draws that they are made of.

A score of draws stands beside its like at the mean where the other model has no draws, which it equals there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vlora.eval.compare_detection import ranked_last, score_sides
from vlora.eval.compare_draws import DrawnSide, are_paired, pair_deviations
from vlora.eval.compare_parts import Statistic
from vlora.eval.generation.answer_draws import DRAWN_CONFIDENCES, DRAWN_SCORES, AnswerDraws
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.metrics.arrays import Array, IntArray

__all__ = ["STAND_INS", "PairScore", "draws_paired", "shared_confidence", "shared_scores"]

STAND_INS = {
    "mixture": "max_probability",
    "mixture_per_token": "token_nll",
    "expected_token_entropy": "mean_token_entropy",
    "p_true_draws": "p_true",
}
"""What a score of draws is for a model without any."""
Side = tuple[AnswerTable, IntArray]
"""A model, and its rows that hold the questions."""


@dataclass(frozen=True)
class _Drawn:
    """A score of one model on resampled draws."""

    draws: AnswerDraws
    values: Callable[[Array], Array]
    """Weights of the draws ``(R, S)`` to the score of every question, ``(R, N)``."""

    def measured(self, make: Callable[[Array], Statistic]) -> DrawnSide:
        """The draws with one metric of the score, which has no name."""

        def replicates(weights: Array) -> dict[str, Array]:
            values = self.values(weights)
            every = np.ones((1, values.shape[1]))
            return {"": np.array([make(row)(every)[0] for row in values])}

        return DrawnSide(*self.draws.layout, replicates)


@dataclass(frozen=True)
class PairScore:
    """One score, or confidence, of both models on the same questions."""

    name: str
    """As asked for."""
    names: tuple[str, ...]
    """What it is of a and of b."""
    values: tuple[Array, ...]
    """Of a and of b, ``(N,)`` each."""
    known: bool
    """Whether the error of its draws can be told: not where an ensemble chose its answers by them, records have
    different numbers of draws, or the other score is of sampled answers."""
    drawn: tuple[_Drawn | None, ...]
    """The same on resampled draws of a and of b; None where draws do not make it."""

    def told(self) -> dict[str, Any]:
        """Which side has another score than the metric says."""
        if ":" in self.name:
            return {"scores": dict(zip("ab", self.names, strict=True))}
        other = {side: own for side, own in zip("ab", self.names, strict=True) if own != self.name}
        return {"stand_in": other} if other else {}

    def statistics(self, makers: Sequence[Callable[[Array], Statistic]]) -> list[Statistic]:
        """The metrics that ``makers`` of a and of b make of the values."""
        return [make(values) for make, values in zip(makers, self.values, strict=True)]

    def deviation(
        self, makers: Sequence[Callable[[Array], Statistic]], seed: int
    ) -> tuple[Array | None, int]:
        """What draws add to the difference of these metrics, ``(R,)``, and the fewest draws of a side.

        None where it is not known (:func:`vlora.eval.compare_draws.pair_deviations`).
        """
        if not self.known:
            return None, 0
        sides = [
            None if side is None else side.measured(make)
            for side, make in zip(self.drawn, makers, strict=True)
        ]
        deviations, units = pair_deviations(sides, seed)
        return deviations.get(""), units


def draws_paired(tables: Sequence[AnswerTable]) -> bool:
    """Whether draws of both models are resampled jointly."""
    return are_paired([None if table.draws is None else table.draws.layout for table in tables])


def shared_scores(sides: Sequence[Side], scores: Sequence[str]) -> list[PairScore]:
    """Scores that both have and one varies; a missing value ranks last."""
    found = []
    for name in scores:
        names = _stand_ins(name, [table.scores for table, _ in sides])
        if names is None:
            continue
        values = [
            ranked_last(table.scores[own][rows]) for own, (table, rows) in zip(names, sides, strict=True)
        ]
        if any(one.min() < one.max() for one in values):  # else there is nothing to tell apart
            found.append(_pair_score(name, names, values, sides, DRAWN_SCORES, AnswerDraws.scores))
    return found


def shared_confidence(sides: Sequence[Side], name: str) -> PairScore | None:
    """A confidence of both, or None where one has neither it nor what stands for it."""
    names = _stand_ins(name, [table.confidences for table, _ in sides])
    if names is None:
        return None
    values = [table.confidences[own][rows] for own, (table, rows) in zip(names, sides, strict=True)]
    return _pair_score(name, names, values, sides, DRAWN_CONFIDENCES, AnswerDraws.confidence)


def _pair_score(
    name: str,
    names: Sequence[str],
    values: Sequence[Array],
    sides: Sequence[Side],
    of_draws: Sequence[str] | Mapping[str, str],
    take: Callable[[AnswerDraws, str, IntArray, Array], Array],
) -> PairScore:
    """One score with the draws of either side, which ``take`` turns into values."""
    made = [own in of_draws for own in names]
    drawn = [
        None if not of or table.draws is None else _Drawn(table.draws, partial(take, table.draws, own, rows))
        for of, own, (table, rows) in zip(made, names, sides, strict=True)
    ]
    known = not any(of and one is None for of, one in zip(made, drawn, strict=True))
    if any(made) and any(_is_sampled(own) for own in names):
        known = False  # half of what the draws add would say too little
    return PairScore(name, tuple(names), tuple(values), known, tuple(drawn))


def _is_sampled(name: str) -> bool:
    """Whether a score is of sampled answers, which other draws would change."""
    known = ESTIMATORS.get(name)
    return known is not None and known.family in ("samples", "posterior") and name not in DRAWN_SCORES


def _stand_ins(name: str, having: Sequence[Mapping[str, Array]]) -> list[str] | None:
    """The name on either side, or what it is without draws; None where a side has neither, or both only the other.

    Of ``EARLIER:LATER`` the two names, without stand-ins.
    """
    if ":" in name:
        pair = list(score_sides(name))
        return pair if all(chosen in own for chosen, own in zip(pair, having, strict=True)) else None
    names = [name if name in own else STAND_INS.get(name, name) for own in having]
    present = all(chosen in own for chosen, own in zip(names, having, strict=True))
    return names if present and name in names else None
