"""Tests of one pair of models that answered the same questions.

    right answers                               McNemar's exact test
    SimpleQA's counts, penalised score,         paired bootstrap: questions are resampled for both models at once
    Brier score of confidences
    AUROC of uncertainty for wrong answers      paired bootstrap, since each model has its own wrong answers; DeLong's
                                                test where both have the same ones (answers that are given)
    AUROC of uncertainty between groups         DeLong's test

Scores and confidences of draws stand beside those at the mean of a model without draws, which they equal there.
Answers that one of the two models' graders could not judge are left out of the tests of right and wrong and counted in
``ungraded``. Draws are not resampled: intervals are over questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.eval.compare_detection import score_sides
from vlora.eval.compare_parts import Statistic, bootstrap_test, delong_test, mcnemar_fields, ratio_of
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.confidence import sharpen
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.tables import Resampler

__all__ = ["STAND_INS", "AnswerPair"]

STAND_INS = {
    "mixture": "max_probability",
    "mixture_per_token": "token_nll",
    "expected_token_entropy": "mean_token_entropy",
    "p_true_draws": "p_true",
}
"""What a score of draws is for a model without any."""
_CONFIDENCES = ("max_probability", "mixture")
_WRONG = "wrong answers"
_LARGEST = 1e300


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
        """Brier score of a confidence, and what answering only above the threshold earns."""
        names = _stand_ins(name, [table.confidences for table, _ in sides])
        if names is None:
            return []
        powers = [table.fitted_power(own) for (table, _), own in zip(sides, names, strict=True)]
        tempered = None not in powers
        brier, score = [], []
        for (table, rows), own, power in zip(sides, names, powers, strict=True):
            sure = sharpen(table.confidences[own][rows], float(power or 1) if tempered else 1.0)
            correct, said = table.correct[rows], table.attempted[rows]
            answered = said * (sure >= threshold)
            brier.append(ratio_of(said * np.square(sure - correct), said))
            score.append(ratio_of(penalties(answered, correct, threshold), np.ones(len(rows))))
        shown, size = name + ("+temperature" if tempered else ""), len(sides[0][1])
        tests = [
            self._bootstrap(f"penalised_score {shown}", score, size, True),
            self._bootstrap(f"brier {shown}", brier, size, False),
        ]
        return [{**test, **_told(name, names)} for test in tests]

    def wrong(self, rows: IntArray, scores: Sequence[str]) -> list[dict[str, Any]]:
        """AUROC of every score for wrong answers, among the questions that both attempt.

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
        for name, names, values in self._shared(sides, scores):
            metric = f"auroc {name}: {_WRONG}"
            if exact:
                test = delong_test(metric, values[0], values[1], wrong[0])
            else:
                areas = [_area(score, own) for score, own in zip(values, wrong, strict=True)]
                test = self._bootstrap(metric, areas, len(rows), True)
            tests.append({**test, **_told(name, names)})
        return tests

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
                {
                    **delong_test(f"auroc {name}: {question}", values[0], values[1], classes),
                    **_told(name, names),
                }
                for name, names, values in self._shared(self._sides(rows), scores)
            ]
        return tests

    def _shared(
        self, sides: Sequence[tuple[AnswerTable, IntArray]], scores: Sequence[str]
    ) -> list[tuple[str, list[str], list[Array]]]:
        """Scores that both have and one varies: name, name on either side, values; a missing one ranks last."""
        found = []
        for name in scores:
            names = _stand_ins(name, [table.scores for table, _ in sides])
            if names is not None:
                values = [
                    np.nan_to_num(table.scores[own][rows], posinf=_LARGEST)
                    for own, (table, rows) in zip(names, sides, strict=True)
                ]
                if any(one.min() < one.max() for one in values):  # else there is nothing to tell apart
                    found.append((name, names, values))
        return found


def _union(parts: Sequence[IntArray]) -> IntArray:
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)


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


def _told(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Which side has another score than the metric says."""
    if ":" in name:
        return {"scores": dict(zip("ab", names, strict=True))}
    other = {side: own for side, own in zip("ab", names, strict=True) if own != name}
    return {"stand_in": other} if other else {}


def _area(uncertainty: Array, wrong: Array) -> Statistic:
    ranking = Ranking.of(uncertainty)
    return lambda weights: Separation.of(ranking, wrong, weights).auroc()
