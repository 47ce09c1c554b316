"""Tests of one pair of models that answered the same questions, for ``vlora compare``.

The tests are in :mod:`vlora.eval.generation.pair_tests`; here runs are read and models paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare import RunKind
from vlora.eval.compare_detection import score_sides
from vlora.eval.generation.columns import ALL, AnswerTable, default_detection
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.generation.files import read_answer_results
from vlora.eval.generation.pair_scores import draws_paired
from vlora.eval.generation.pair_tests import AnswerPair
from vlora.eval.generation.records import AnswerRecord, read_answers
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
        scores: Uncertainties to compare as for :func:`chosen_scores`, where both models have them.
    """
    return RunKind(
        name="answers",
        file="answers.jsonl",
        read=_read,
        test=lambda a, b: compare_answers(a, b, resampler, chosen_scores(scores)),
        identity=_identity,
    )


def chosen_scores(names: Sequence[str]) -> tuple[str, ...]:
    """Names of uncertainties as a user gives them: none for the default, ``all`` for every one, ``EARLIER:LATER``.

    Raises:
        DataError: There is no such uncertainty.
    """
    own = [name for name in names if name != "all"]
    unknown = [part for name in own for part in score_sides(name) if part not in ESTIMATORS]
    if unknown:
        raise DataError(
            f"there is no score {unknown[0]!r} of answers; choose from all, {', '.join(ESTIMATORS)}"
        )
    return (
        (*ESTIMATORS, *(name for name in own if ":" in name))
        if "all" in names
        else tuple(own) or DEFAULT_SCORES
    )


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
        b: The earlier model, on the same questions; its threshold and detection questions count, those of a where it
            has none.
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
    pair = AnswerPair((a.table, b.table), resampler)
    graded = rows[a.table.graded[rows] & b.table.graded[pair.of_b(rows)]]
    tests = [*pair.right(graded, b.threshold), *pair.wrong(graded, scores)] if len(graded) else []
    tests += pair.between(b.detect or a.detect or default_detection(b.table), scores)
    draws = [run.table.num_draws if run.table.num_draws > 1 else 0 for run in (a, b)]
    return {
        **{
            f"predictor_{side}": "samples" if count else "mean"
            for side, count in zip("ab", draws, strict=True)
        },
        **{"n": len(rows), "ungraded": len(rows) - len(graded), "threshold": b.threshold},
        "draws": {"a": draws[0], "b": draws[1], "paired": draws_paired((a.table, b.table))},
        "tests": tests,
    }
