"""Tests of one pair of models that answered the same questions.

    right answers                               McNemar's exact test
    SimpleQA's counts, penalised score,         paired bootstrap: questions are resampled for both models at once
    Brier score and ECE of confidences
    AUROC of uncertainty for wrong answers,     paired bootstrap, since each model has its own wrong answers; of the
    AURC of confidences                         AUROC DeLong's test where both have the same ones (given answers)
    AUROC of uncertainty between groups         DeLong's test

Scores and confidences of draws stand beside those at the mean of a model without draws, which they equal there. What
draws say of the judged answer is resampled with the questions (:mod:`vlora.eval.generation.answer_draws`), jointly
where both models have equally many; a temperature stays as it was fitted. Everything else has the error of questions
alone. Answers that one of the two models' graders could not judge are left out of the tests of right and wrong and
counted in ``ungraded``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from vlora.eval.compare_parts import Statistic, bootstrap_test, delong_test, mcnemar_fields, ratio_of
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.pair_scores import PairScore, shared_confidence, shared_scores
from vlora.eval.generation.pair_statistics import (
    area,
    area_under_risk,
    brier,
    calibration_error,
    penalised,
    sharpened,
)
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.tables import Resampler

__all__ = ["AnswerPair"]

_CONFIDENCES = ("max_probability", "mixture")
_WRONG = "wrong answers"


class AnswerPair:
    """Two models that answered the same questions."""

    def __init__(self, tables: tuple[AnswerTable, AnswerTable], resampler: Resampler) -> None:
        self._tables, self._resampler = tables, resampler

    def of_b(self, rows: IntArray) -> IntArray:
        """Rows of b that hold the questions of rows of a."""
        a, b = self._tables
        return np.array([b.row_of[a.records[row].item] for row in rows], dtype=np.int64)

    def _sides(self, rows: IntArray) -> list[tuple[AnswerTable, IntArray]]:
        return list(zip(self._tables, (rows, self.of_b(rows)), strict=True))

    def _bootstrap(
        self, metric: str, statistics: Sequence[Statistic], size: int, higher: bool
    ) -> dict[str, Any]:
        return bootstrap_test(metric, statistics, self._resampler.counts(size), higher=higher)

    def _of_score(
        self, metric: str, score: PairScore, makers: Sequence[Callable[[Array], Statistic]], higher: bool
    ) -> dict[str, Any]:
        """Paired bootstrap of what ``makers`` of a and of b make of a score, its draws resampled with the questions."""
        deviation, units = score.deviation(makers, self._resampler.seed)
        counts = self._resampler.counts(len(score.values[0]))
        drawn = {"deviation": deviation, "units": units}
        test = bootstrap_test(metric, score.statistics(makers), counts, higher=higher, **drawn)
        return {**test, **score.told()}

    def _of_areas(self, metric: str, score: PairScore, positive: Array) -> dict[str, Any]:
        """DeLong's test of a score, with the error of its draws."""
        deviation, units = score.deviation([partial(area, positive)] * 2, self._resampler.seed)
        first, second = score.values
        test = delong_test(metric, first, second, positive, deviation=deviation, units=units)
        return {**test, **score.told()}

    def right(self, rows: IntArray, threshold: float) -> list[dict[str, Any]]:
        """How right both are, what declining does to it, and how well confidences fit.

        Args:
            rows: Rows of a that both graders judged.
            threshold: Probability of being right above which answering pays.
        """
        sides, one = self._sides(rows), np.ones(len(rows))
        correct = [table.correct[own] for table, own in sides]
        said = [table.attempted[own] for table, own in sides]
        found = self._bootstrap("correct", [ratio_of(values, one) for values in correct], len(rows), True)
        if all(np.isin(values, [0.0, 1.0]).all() for values in correct):
            found |= mcnemar_fields(correct[0], correct[1])
        tests = [found]
        if min(values.min() for values in said) == 0:  # else every one of them is the test above again
            parts = {
                "incorrect": ([(s - c, one) for c, s in zip(correct, said, strict=True)], False),
                "accuracy_given_attempted": (list(zip(correct, said, strict=True)), True),
                "f_score": ([(2 * c, s + one) for c, s in zip(correct, said, strict=True)], True),
                "penalised_score": (
                    [(penalties(s, c, threshold), one) for c, s in zip(correct, said, strict=True)],
                    True,
                ),
            }
            tests += [
                self._bootstrap(name, [ratio_of(*part) for part in ratios], len(rows), higher)
                for name, (ratios, higher) in parts.items()
            ]
        return tests + [test for name in _CONFIDENCES for test in self._confident(name, sides, threshold)]

    def _confident(
        self, name: str, sides: Sequence[tuple[AnswerTable, IntArray]], threshold: float
    ) -> list[dict[str, Any]]:
        """Brier score and ECE of a confidence, and what answering only above the threshold earns."""
        score = shared_confidence(sides, name)
        if score is None:
            return []
        powers = [table.fitted_power(own) for (table, _), own in zip(sides, score.names, strict=True)]
        tempered = None not in powers
        shown = name + ("+temperature" if tempered else "")
        metrics = {
            "penalised_score": (partial(penalised, threshold), True),
            "brier": (brier, False),
            "ece_15_equal_width": (calibration_error, False),
        }
        tests = []
        for metric, (of, higher) in metrics.items():
            makers = [
                partial(
                    sharpened, of, table.correct[rows], table.attempted[rows], power if tempered else None
                )
                for (table, rows), power in zip(sides, powers, strict=True)
            ]
            tests.append(self._of_score(f"{metric} {shown}", score, makers, higher))
        return tests

    def wrong(self, rows: IntArray, scores: Sequence[str]) -> list[dict[str, Any]]:
        """AUROC of every score for wrong answers, and AURC of confidences, among the questions that both attempt.

        Args:
            rows: Rows of a that both graders judged.
            scores: Names of uncertainties.
        """
        a, b = self._tables
        rows = rows[(a.attempted[rows] == 1) & (b.attempted[self.of_b(rows)] == 1)]
        sides = self._sides(rows)
        wrong = [1 - table.correct[own] for table, own in sides]
        if not len(rows) or any(values.min() == values.max() for values in wrong):
            return []
        exact = np.array_equal(wrong[0], wrong[1]) and np.isin(wrong[0], [0, 1]).all()
        exact = exact and min(wrong[0].sum(), (1 - wrong[0]).sum()) >= 2
        tests = []
        for score in shared_scores(sides, scores):
            metric = f"auroc {score.name}: {_WRONG}"
            if exact:
                tests.append(self._of_areas(metric, score, wrong[0]))
            else:
                makers = [partial(area, own) for own in wrong]
                tests.append(self._of_score(metric, score, makers, True))
        makers = [partial(area_under_risk, own) for own in wrong]
        ranked = shared_scores(sides, _CONFIDENCES)  # a confidence ranks as the uncertainty of its name
        return tests + [self._of_score(f"aurc {score.name}", score, makers, False) for score in ranked]

    def between(
        self, questions: Mapping[str, Mapping[str, Sequence[str]]], scores: Sequence[str]
    ) -> list[dict[str, Any]]:
        """AUROC of every score between groups.

        Args:
            questions: Name -> groups that should look uncertain (``positive``) and certain (``negative``).
            scores: Names of uncertainties.
        """
        groups, tests = self._tables[0].groups(), []
        for question, asked in questions.items():
            parts = [
                [groups[name] for name in asked[side] if name in groups] for side in ("positive", "negative")
            ]
            positive, negative = (_union(part) for part in parts)
            if min(len(positive), len(negative)) < 2:
                continue
            rows = np.concatenate([positive, negative])
            classes = np.repeat([1.0, 0.0], [len(positive), len(negative)])
            tests += [
                self._of_areas(f"auroc {score.name}: {question}", score, classes)
                for score in shared_scores(self._sides(rows), scores)
            ]
        return tests


def _union(parts: Sequence[IntArray]) -> IntArray:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
