"""Tests of one pair of models that answered the same questions, for ``vlora compare``.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare import RunKind
from vlora.eval.compare_parts import Statistic, bootstrap_test, delong_test, mcnemar_fields, ratio_of
from vlora.eval.generation.columns import ALL, AnswerTable, default_detection
from vlora.eval.generation.confidence import sharpen
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.generation.files import read_answer_results
from vlora.eval.generation.records import AnswerRecord, read_answers
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.tables import Resampler

__all__ = ["DEFAULT_SCORES", "AnsweredRun", "answer_kind", "chosen_scores", "compare_answers"]

DEFAULT_SCORES = (
    "max_probability",
    "mean_token_entropy",
    "answer_length",
    "p_true",
    "semantic_entropy",
    "mixture",
    "scored_semantic_information",
)
"""Uncertainties that are compared unless others are named: few, since every test makes the others stricter."""
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


@dataclass(frozen=True)
class AnsweredRun:
    """One model of a run, with the settings of the run that the tests need."""

    table: AnswerTable
    threshold: float
    """Probability of being right above which answering pays."""
    detect: Mapping[str, Mapping[str, Sequence[str]]]
    """Questions between groups as configured; without any, every out-of-distribution set against the test questions."""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.table.model

    @property
    def records(self) -> Sequence[AnswerRecord]:
        """Its answers."""
        return self.table.records

    @property
    def row_of(self) -> Mapping[str, int]:
        """Row of every question."""
        return self.table.row_of


def answer_kind(resampler: Resampler, scores: Sequence[str] = DEFAULT_SCORES) -> RunKind:
    """Evaluations of answers as :func:`vlora.eval.compare.compare_kinds` reads and tests them.

    Args:
        resampler: Source of the bootstrap resamples.
        scores: Uncertainties to compare, where both models have them.
    """
    return RunKind(
        name="answers",
        file="answers.jsonl",
        read=_read,
        test=lambda a, b: compare_answers(a, b, resampler, scores),
        identity=_identity,
    )


def chosen_scores(names: Sequence[str]) -> tuple[str, ...]:
    """Names of uncertainties as given by a user: none for the default, ``all`` for every one.

    Raises:
        DataError: There is no such uncertainty.
    """
    unknown = [name for name in names if name != "all" and name not in ESTIMATORS]
    if unknown:
        raise DataError(
            f"there is no score {unknown[0]!r} of answers; choose from all, {', '.join(ESTIMATORS)}"
        )
    return tuple(ESTIMATORS) if "all" in names else tuple(names) or DEFAULT_SCORES


def _read(path: Path) -> list[AnsweredRun]:
    """Every model of a run."""
    settings = read_answer_results(path.with_name("results.json")).get("settings") or {}
    by_model: dict[str, list[AnswerRecord]] = {}
    for record in read_answers(path):
        by_model.setdefault(record.model, []).append(record)
    if not by_model:
        raise DataError(f"{path} holds no answers; was the evaluation interrupted before its first question?")
    return [
        AnsweredRun(AnswerTable(name, rows), settings.get("threshold", 0.75), settings.get("detect") or {})
        for name, rows in by_model.items()
    ]


def _identity(record: AnswerRecord) -> dict[str, Any]:
    """What two records of one question must agree in; a given answer and its label are part of the question."""
    shared = {name: getattr(record, name) for name in ("question", "references", "group", "split")}
    given = (record.answer.text, record.correct) if record.answer.given else None
    return {**shared, "given answer": given}


def compare_answers(
    a: AnsweredRun, b: AnsweredRun, resampler: Resampler, scores: Sequence[str]
) -> dict[str, Any]:
    """Test model a against model b.

    Args:
        a: The later model.
        b: The earlier model, on the same questions; its threshold and detection questions count.
        resampler: Source of the bootstrap resamples.
        scores: Uncertainties to compare, where both models have them.

    Returns:
        ``predictor_a``, ``predictor_b``, ``n``, ``ungraded``, ``threshold``, ``draws`` and ``tests``.

    Raises:
        DataError: There is no test question.
    """
    rows = a.table.groups().get(ALL, np.empty(0, dtype=np.int64))
    if not len(rows):
        raise DataError(f"{a.model} and {b.model} share no test question")
    pair = _Pair((a.table, b.table), resampler)
    graded = rows[a.table.graded[rows] & b.table.graded[pair.of_b(rows)]]
    tests = [*pair.right(graded, b.threshold), *pair.wrong(graded, scores)] if len(graded) else []
    tests += pair.between(b.detect or default_detection(b.table), scores)
    draws = [run.table.num_draws if run.table.num_draws > 1 else 0 for run in (a, b)]
    return {
        **{
            f"predictor_{side}": "samples" if count else "mean"
            for side, count in zip("ab", draws, strict=True)
        },
        **{"n": len(rows), "ungraded": len(rows) - len(graded), "threshold": b.threshold},
        "draws": {"a": draws[0], "b": draws[1], "paired": False},
        "tests": tests,
    }


class _Pair:
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
        """How right both are, what declining does to it, and how well confidences fit."""
        sides, one = self._sides(rows), np.ones(len(rows))
        correct = [table.correct[own] for table, own in sides]
        said = [table.attempted[own] for table, own in sides]
        found = self._bootstrap("correct", [ratio_of(values, one) for values in correct], len(rows), True)
        if all(np.isin(values, [0.0, 1.0]).all() for values in correct):
            found |= mcnemar_fields(correct[0], correct[1], found["difference"])
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
        """AUROC of every score for wrong answers, among the questions that both attempt."""
        a, b = self._tables
        rows = rows[(a.attempted[rows] == 1) & (b.attempted[self.of_b(rows)] == 1)]
        sides = self._sides(rows)
        wrong = [1 - table.correct[own] for table, own in sides]
        if not len(rows) or any(values.min() == values.max() for values in wrong):
            return []
        exact = np.array_equal(*wrong) and np.isin(wrong[0], [0, 1]).all()
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
        """AUROC of every score between groups."""
        groups, tests = self._tables[0].groups(), []
        for question, asked in questions.items():
            parts = [
                [groups[name] for name in asked[side] if name in groups] for side in ("positive", "negative")
            ]
            positive, negative = (np.unique(np.concatenate(part)) if part else np.empty(0) for part in parts)
            if min(len(positive), len(negative)) < 2:
                continue
            rows = np.concatenate([positive, negative])
            classes = np.repeat([1.0, 0.0], [len(positive), len(negative)])
            tests += [
                {**delong_test(f"auroc {name}: {question}", *values, classes), **_told(name, names)}
                for name, names, values in self._shared(self._sides(rows), scores)
            ]
        return tests

    def _shared(
        self, sides: Sequence[tuple[AnswerTable, IntArray]], scores: Sequence[str]
    ) -> list[tuple[str, list[str], list[Array]]]:
        """Scores that both have: name, name on either side, and values; a missing value ranks as least certain."""
        found = []
        for name in scores:
            names = _stand_ins(name, [table.scores for table, _ in sides])
            if names is not None:
                values = [
                    np.nan_to_num(table.scores[own][rows], posinf=_LARGEST)
                    for own, (table, rows) in zip(names, sides, strict=True)
                ]
                found.append((name, names, values))
        return found


def _stand_ins(name: str, having: Sequence[Mapping[str, Array]]) -> list[str] | None:
    """The name on either side, or what it is without draws; None where a side has neither, or both only the other."""
    names = [name if name in own else STAND_INS.get(name, name) for own in having]
    present = all(chosen in own for chosen, own in zip(names, having, strict=True))
    return names if present and name in names else None


def _told(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Which side has another score than the metric says."""
    other = {side: own for side, own in zip("ab", names, strict=True) if own != name}
    return {"stand_in": other} if other else {}


def _area(uncertainty: Array, wrong: Array) -> Statistic:
    ranking = Ranking.of(uncertainty)
    return lambda weights: Separation.of(ranking, wrong, weights).auroc()
