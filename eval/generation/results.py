"""Numbers from answer records: how right, and how well every estimator tells right from wrong.

Intervals are percentile bootstraps over questions, the same resamples for every estimator and model. A question that
could not be graded is counted in ``ungraded``. What draws say of the judged answer has their error, too
(:mod:`vlora.eval.generation.answer_draws`); that answer itself is given, or greedy at the mean, and has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare_parts import ratio_of
from vlora.eval.generation.columns import AnswerTable, Resampler, default_detection, number
from vlora.eval.generation.confidence_rows import confidence_rows
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.figure_data import answer_figures, answer_mistakes
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.generation.score_rows import detection_rows, estimator_rows
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.intervals import (
    Counts,
    Interval,
    bootstrap,
    bootstrap_mean,
    percentile_interval,
)

__all__ = ["compute_answer_results"]


def compute_answer_results(
    records: Sequence[AnswerRecord],
    *,
    detect: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    threshold: float = 0.75,
    rules: AnswerCalibrationConfig | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that follows from the records of one run.

    Args:
        records: Of all models and splits.
        detect: Questions of the form "do these groups look less certain than those" by name.
        threshold: Probability of being right above which answering pays, for the penalised score.
        rules: Risk of the thresholds that are fitted on validation questions; None takes the defaults of calibration.
        num_bootstrap: Resamples of the questions.
        seed: Seed of the resampling, and of the division of the validation questions.

    Returns:
        ``answers`` (how right, per model and group), ``estimators`` (how well each tells wrong from right),
        ``confidences`` (calibration and penalised score), ``detection``; every number with value, low, high, n, and
        those of what the draws say of the judged answer with ``item_error``, ``draw_error``, ``crossed_low`` and
        ``crossed_high``.
        ``mistakes`` are the wrong answers that each model found most probable, ``figures`` what the plots show.

    Raises:
        DataError: No record to report on, or an identity that one model has twice.
    """
    tables = [AnswerTable(name, [r for r in records if r.model == name]) for name in _models(records)]
    questions = dict(detect or {}) or default_detection(tables[0])
    resample = Resampler(num_bootstrap, seed)
    return {
        "answers": [row for table in tables for row in _answer_rows(table, threshold, resample)],
        "estimators": [row for table in tables for row in estimator_rows(table, resample)],
        "confidences": [row for table in tables for row in confidence_rows(table, threshold, resample)],
        "detection": [row for table in tables for row in detection_rows(table, questions, resample)],
        "mistakes": [row for table in tables for row in answer_mistakes(table)],
        "figures": answer_figures(tables, rules or AnswerCalibrationConfig(), seed),
    }


def _models(records: Sequence[AnswerRecord]) -> list[str]:
    seen: set[tuple[str, str]] = set()
    for record in records:
        key = (record.model, record.item)
        if key in seen:
            raise DataError(f"model {record.model!r} answered {record.item} twice; are two runs in one file?")
        seen.add(key)
    names = list(dict.fromkeys(record.model for record in records))
    if not any(record.split != "validation" for record in records):
        raise DataError(
            "there are no answers to report on; was the evaluation interrupted before its first item?"
        )
    return names


def _answer_rows(table: AnswerTable, threshold: float, resample: Resampler) -> list[dict[str, Any]]:
    """How right the answers are."""
    rows = []
    for group, members in table.groups().items():
        graded = members[table.graded[members]]
        counts = {
            "questions": len(members),
            "ungraded": len(members) - len(graded),
            "judge_failures": sum(table.records[row].judge_failures for row in members),
        }
        row: dict[str, Any] = {"model": table.model, "group": group, **counts, "metrics": {}}
        if len(graded):
            attempted, correct = table.attempted[graded], table.correct[graded]
            drawn, right = resample(len(graded)), attempted * correct
            penalised = bootstrap_mean(penalties(attempted, correct, threshold), drawn)
            row["metrics"] = {
                "correct": number(bootstrap_mean(correct, drawn)),
                "not_attempted": number(bootstrap_mean(1 - attempted, drawn)),
                "accuracy_given_attempted": number(_share(right, attempted, drawn)),
                "f_score": number(_share(2 * right, attempted + 1, drawn)),
                "penalised_score": number(penalised),
            }
        rows.append(row)
    return rows


def _share(numerator: Array, denominator: Array, counts: Counts) -> Interval:
    """A sum over a sum with its interval, NaN where there is nothing to divide by.

    Right answers over attempts are SimpleQA's accuracy given attempted, and twice the right answers over attempts plus
    questions their F (:mod:`vlora.eval.metrics.abstention`): the harmonic mean of two shares of one numerator.
    """
    statistic = ratio_of(numerator, denominator)
    value = float(statistic(np.ones((1, len(numerator))))[0])
    return percentile_interval(value, bootstrap(statistic, counts), len(numerator))
