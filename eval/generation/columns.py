"""Records of one model as columns, the resamples behind all intervals, and numbers as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.eval.generation.answer_draws import DRAWN_CONFIDENCES, AnswerDraws
from vlora.eval.generation.confidence import fit_power
from vlora.eval.generation.estimators import CONFIDENCES, ESTIMATORS, columns, confidences, item_scores
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.intervals import Counts, Interval, resample_counts

__all__ = ["ALL", "AnswerTable", "Resampler", "default_detection", "number", "plain_number"]

ALL = "all"


class Resampler:
    """Bootstrap counts by number of questions, drawn once."""

    def __init__(self, num_bootstrap: int, seed: int) -> None:
        self._num_bootstrap, self.seed = num_bootstrap, seed
        self._drawn: dict[int, Counts] = {}

    def __call__(self, size: int) -> Counts:
        """How often each of ``size`` questions is drawn, shape ``(B, size)``."""
        if size not in self._drawn:
            self._drawn[size] = resample_counts(size, self._num_bootstrap, self.seed)
        return self._drawn[size]


class AnswerTable:
    """Records of one model as columns."""

    def __init__(self, model: str, records: Sequence[AnswerRecord]) -> None:
        self.model, self.records = model, list(records)
        self.scores = columns([item_scores(record) for record in records], tuple(ESTIMATORS))
        self.confidences = {
            name: np.where(np.isinf(values), 0.0, values)
            for name, values in columns([confidences(record) for record in records], CONFIDENCES).items()
        }
        self.correct = np.array(
            [np.nan if r.correct is None else r.correct for r in records], dtype=np.float64
        )
        self.attempted = np.array([float(r.attempted) for r in records])
        self.split = np.array([r.split for r in records])
        self.group = np.array([r.group for r in records])
        self.row_of = {record.item: row for row, record in enumerate(self.records)}
        self.num_draws = max((len(r.answer.draw_log_probs) for r in records), default=0)
        self.draws = AnswerDraws.of(model, self.records)

    @property
    def graded(self) -> NDArray[np.bool_]:
        """Whether each answer could be graded."""
        return ~np.isnan(self.correct)

    @property
    def ranked(self) -> NDArray[np.bool_]:
        """Whether each answer is graded and an attempt: declining is neither right nor wrong."""
        return self.graded & (self.attempted == 1)

    def fitted_power(self, confidence: str) -> float | None:
        """Exponent of a confidence that its validation questions ask for; None without any."""
        held_out = self._held_out()
        return (
            fit_power(self.confidences[confidence][held_out], self.correct[held_out])
            if len(held_out)
            else None
        )

    def drawn_powers(self, confidence: str, weights: Array) -> Array | None:
        """The same on resampled draws with weights ``(R, S)``, ``(R,)``; None where draws do not make it."""
        held_out = self._held_out()
        if self.draws is None or confidence not in DRAWN_CONFIDENCES or not len(held_out):
            return None
        drawn = self.draws.confidence(confidence, held_out, weights)
        return np.array([fit_power(row, self.correct[held_out]) for row in drawn])

    def _held_out(self) -> IntArray:
        """Validation questions that a confidence is fitted on."""
        return np.flatnonzero((self.split == "validation") & self.ranked)

    def groups(self) -> dict[str, IntArray]:
        """Rows of all test questions together, of each of their groups, and of every out-of-distribution set."""
        test, reported = self.split == "test", self.split != "validation"
        names = dict.fromkeys(self.group[reported].tolist())
        found = {ALL: np.flatnonzero(test)} if test.any() else {}
        return found | {
            name: np.flatnonzero(reported & (self.group == name)) for name in names if name != ALL
        }


def default_detection(table: AnswerTable) -> dict[str, dict[str, list[str]]]:
    """Every out-of-distribution set against all test questions."""
    outside = dict.fromkeys(table.group[table.split == "ood"].tolist())
    return {f"{name} vs test": {"positive": [name], "negative": [ALL]} for name in outside}


def number(interval: Interval) -> dict[str, Any]:
    """An interval as JSON; None stands for what is not defined."""
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {k: float(v) if np.isfinite(v) else None for k, v in values.items()} | {"n": interval.n}


def plain_number(value: float, count: int) -> dict[str, Any]:
    """A number without an interval as JSON."""
    return number(Interval(value, float("nan"), float("nan"), count))
