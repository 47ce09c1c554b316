"""Numbers from answer records: how right, and how well every estimator tells right from wrong.

Positive class of every ranking is the wrong answer, uncertainty is the score; answers that decline are not ranked.
Intervals are percentile bootstraps over questions, the same resamples for every estimator and model. A question that
lacks an estimator (its judge failed) ranks as the least certain one and is counted in ``missing``; one that could not
be graded is counted in ``ungraded``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare_parts import ratio_of
from vlora.eval.generation.columns import AnswerTable, Resampler, default_detection, number, plain_number
from vlora.eval.generation.confidence import sharpen
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.generation.figure_data import answer_figures, answer_mistakes
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import calibration, calibration_floor, width_gaps
from vlora.eval.metrics.intervals import (
    Counts,
    Interval,
    bootstrap,
    bootstrap_mean,
    percentile_interval,
)
from vlora.eval.metrics.ranking import Ranking, Separation, auroc, average_precision
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import Kept

__all__ = ["compute_answer_results"]

COVERAGE = 0.8
"""Share of the most certain answers whose accuracy is reported."""
SLOW_RESAMPLES = 200
"""Resamples behind intervals of measures without a closed form over resamples (AUPR, PRR)."""


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
        ``confidences`` (calibration and penalised score), ``detection``; every number with value, low, high, n.
        ``mistakes`` are the wrong answers that each model found most probable, ``figures`` what the plots show.

    Raises:
        DataError: No record to report on, or an identity that one model has twice.
    """
    tables = [AnswerTable(name, [r for r in records if r.model == name]) for name in _models(records)]
    questions = dict(detect or {}) or default_detection(tables[0])
    resample = Resampler(num_bootstrap, seed)
    return {
        "answers": [row for table in tables for row in _answer_rows(table, threshold, resample)],
        "estimators": [row for table in tables for row in _estimator_rows(table, resample)],
        "confidences": [row for table in tables for row in _confidence_rows(table, threshold, resample)],
        "detection": [row for table in tables for row in _detection_rows(table, questions, resample)],
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


def _calibration_error(sure: Array, right: Array, counts: Counts) -> Interval:
    """Expected calibration error in 15 bins of equal width with its interval."""
    gaps = width_gaps(sure, right)
    replicates = bootstrap(lambda weights: np.abs(weights @ gaps).sum(axis=1) / len(sure), counts)
    return percentile_interval(calibration(sure, right).ece, replicates, len(sure))


def _estimator_rows(table: AnswerTable, resample: Resampler) -> list[dict[str, Any]]:
    """How well every estimator tells wrong answers from right ones."""
    rows = []
    for group, members in table.groups().items():
        members = members[table.ranked[members]]
        correct = table.correct[members]
        if len(members) < 2 or correct.min() == correct.max():
            continue
        for name, values in table.scores.items():
            shared = {
                "model": table.model,
                "estimator": name,
                "family": ESTIMATORS[name].family,
                "group": group,
            }
            missing = int(np.isinf(values[members]).sum())
            metrics = _ranking_metrics(values[members], correct, resample(len(members)))
            rows.append({**shared, "missing": missing, "metrics": metrics})
    return rows


def _ranking_metrics(uncertainty: Array, correct: Array, counts: Counts) -> dict[str, Any]:
    """AUROC, AUPR of wrong answers, AURC, accuracy of the 80 % most certain answers, and PRR, with intervals."""
    wrong, size, ranking = 1 - correct, len(correct), Ranking.of(uncertainty)
    one = np.ones((1, size))

    def measures(weights: Array) -> Array:
        kept = Kept.of(ranking, correct, weights)
        area = Separation.of(ranking, wrong, weights).auroc()
        return np.stack([area, kept.aurc(), kept.accuracy_at(COVERAGE)], axis=1)

    value, resampled = measures(one)[0], bootstrap(measures, counts)
    found = {
        name: percentile_interval(value[place], resampled[:, place], size)
        for place, name in enumerate(("auroc", "aurc", "accuracy_at_80"))
    }
    rows = [np.repeat(np.arange(size), count) for count in counts[:SLOW_RESAMPLES]]
    slow = {
        "aupr": lambda chosen: average_precision(uncertainty[chosen], wrong[chosen]),
        "prr": lambda chosen: prediction_rejection_ratio(uncertainty[chosen], correct[chosen]),
    }
    for name, measure in slow.items():
        replicates = [measure(chosen) for chosen in rows]
        found[name] = percentile_interval(measure(np.arange(size)), replicates, size)
    return {name: number(interval) for name, interval in found.items()}


def _confidence_rows(table: AnswerTable, threshold: float, resample: Resampler) -> list[dict[str, Any]]:
    """Calibration of every confidence, as it is and with its power fitted on the validation questions."""
    rows, fitted = [], {name: table.fitted_power(name) for name in table.confidences}
    for group, members in table.groups().items():
        members = members[table.graded[members]]
        if not len(members):
            continue
        for name, values in table.confidences.items():
            powers = {"": 1.0, "+temperature": fitted[name]}
            for suffix, power in powers.items():
                if power is None:
                    continue
                metrics = _calibration_metrics(
                    table, members, sharpen(values[members], power), threshold, resample
                )
                shared = {"model": table.model, "confidence": name + suffix, "group": group}
                rows.append({**shared, "temperature": 1 / power, "metrics": metrics})
    return rows


def _calibration_metrics(
    table: AnswerTable, members: IntArray, confidence: Array, threshold: float, resample: Resampler
) -> dict[str, Any]:
    correct, attempted = table.correct[members], table.attempted[members]
    counts, spoken = resample(len(members)), np.flatnonzero(attempted)
    answered = attempted * (confidence >= threshold)
    found = {
        "answered": number(bootstrap_mean(answered, counts)),
        "penalised_score": number(bootstrap_mean(penalties(answered, correct, threshold), counts)),
    }
    if not len(spoken):
        return found
    sure, right, size = confidence[spoken], correct[spoken], len(spoken)
    return found | {
        "brier": number(bootstrap_mean(np.square(sure - right), resample(size))),
        "ece_15_equal_width": number(_calibration_error(sure, right, resample(size))),
        "ece_floor": plain_number(calibration_floor(sure).mean, size),
    }


def _detection_rows(
    table: AnswerTable, questions: Mapping[str, Mapping[str, Sequence[str]]], resample: Resampler
) -> list[dict[str, Any]]:
    """AUROC of every estimator between groups."""
    groups, rows = table.groups(), []
    for question, sides in questions.items():
        parts = []
        for side in ("positive", "negative"):
            unknown = [name for name in sides[side] if name not in groups]
            if unknown:
                raise DataError(
                    f"detect.{question}: no group {unknown[0]!r}; the data hold {', '.join(groups)}"
                )
            parts.append(np.unique(np.concatenate([groups[name] for name in sides[side]])))
        members = np.concatenate(parts)
        positive = np.repeat([1.0, 0.0], [len(part) for part in parts])
        for name, values in table.scores.items():
            ranking = Ranking.of(values[members])

            def area(weights: Array, ranking: Ranking = ranking) -> Array:
                return Separation.of(ranking, positive, weights).auroc()  # noqa: B023

            found = percentile_interval(
                auroc(values[members], positive), bootstrap(area, resample(len(members))), len(members)
            )
            shared = {"model": table.model, "estimator": name, "family": ESTIMATORS[name].family}
            rows.append({**shared, "question": question, "auroc": number(found)})
    return rows
