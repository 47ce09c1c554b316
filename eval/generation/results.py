"""Numbers from answer records: how right, and how well every estimator tells right from wrong.

Positive class of every ranking is the wrong answer, uncertainty is the score. Intervals are percentile bootstraps over
questions, the same resamples for every estimator and model. A question that lacks an estimator (its judge failed) ranks
as the least certain one and is counted in ``missing``; one that could not be graded is counted in ``ungraded``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.estimators import CONFIDENCES, ESTIMATORS, columns, confidences, item_scores
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.abstention import abstention_scores, penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.intervals import (
    Counts,
    Interval,
    bootstrap,
    bootstrap_mean,
    percentile_interval,
    resample_counts,
)
from vlora.eval.metrics.ranking import Ranking, Separation, auroc, average_precision
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import Kept

__all__ = ["ALL", "compute_answer_results", "number"]

ALL = "all"
SLOW_RESAMPLES = 200
"""Resamples behind intervals of measures without a closed form over resamples (AUPR, PRR)."""


def compute_answer_results(
    records: Sequence[AnswerRecord],
    *,
    detect: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    threshold: float = 0.75,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that follows from the records of one run.

    Args:
        records: Of all models and splits.
        detect: Questions of the form "do these groups look less certain than those" by name.
        threshold: Probability of being right above which answering pays, for the penalised score.
        num_bootstrap: Resamples of the questions.
        seed: Seed of the resampling.

    Returns:
        ``answers`` (how right, per model and group), ``estimators`` (how well each tells wrong from right),
        ``confidences`` (calibration and penalised score), ``detection``; every number with value, low, high, n.

    Raises:
        DataError: No record to report on, or an identity that one model has twice.
    """
    tables = [_Table(name, [r for r in records if r.model == name]) for name in _models(records)]
    questions = dict(detect or {}) or _default_detection(tables[0])
    resample = _Resampler(num_bootstrap, seed)
    return {
        "answers": [row for table in tables for row in _answer_rows(table, threshold, resample)],
        "estimators": [row for table in tables for row in _estimator_rows(table, resample)],
        "confidences": [row for table in tables for row in _confidence_rows(table, threshold, resample)],
        "detection": [row for table in tables for row in _detection_rows(table, questions, resample)],
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


class _Resampler:
    """Bootstrap counts by number of questions, drawn once."""

    def __init__(self, num_bootstrap: int, seed: int) -> None:
        self._num_bootstrap, self._seed = num_bootstrap, seed
        self._drawn: dict[int, Counts] = {}

    def __call__(self, size: int) -> Counts:
        if size not in self._drawn:
            self._drawn[size] = resample_counts(size, self._num_bootstrap, self._seed)
        return self._drawn[size]


class _Table:
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

    def groups(self) -> dict[str, IntArray]:
        """Rows of all test questions together, of each of their groups, and of every out-of-distribution set."""
        test, reported = self.split == "test", self.split != "validation"
        names = dict.fromkeys(self.group[reported].tolist())
        found = {ALL: np.flatnonzero(test)} if test.any() else {}
        return found | {
            name: np.flatnonzero(reported & (self.group == name)) for name in names if name != ALL
        }


def number(interval: Interval) -> dict[str, Any]:
    """An interval as JSON; None stands for what is not defined."""
    values = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {k: float(v) if np.isfinite(v) else None for k, v in values.items()} | {"n": interval.n}


def _answer_rows(table: _Table, threshold: float, resample: _Resampler) -> list[dict[str, Any]]:
    """How right the answers are."""
    rows = []
    for group, members in table.groups().items():
        graded = members[~np.isnan(table.correct[members])]
        counts = {
            "questions": len(members),
            "ungraded": len(members) - len(graded),
            "judge_failures": sum(table.records[row].judge_failures for row in members),
        }
        row: dict[str, Any] = {"model": table.model, "group": group, **counts, "metrics": {}}
        if len(graded):
            attempted, correct = table.attempted[graded], table.correct[graded]
            scores, drawn = abstention_scores(attempted, correct), resample(len(graded))
            penalised = bootstrap_mean(penalties(attempted, correct, threshold), drawn)
            row["metrics"] = {
                "correct": number(bootstrap_mean(correct, drawn)),
                "not_attempted": number(bootstrap_mean(1 - attempted, drawn)),
                "accuracy_given_attempted": _plain(scores.accuracy_given_attempted, len(graded)),
                "f_score": _plain(scores.f_score, len(graded)),
                "penalised_score": number(penalised),
            }
        rows.append(row)
    return rows


def _plain(value: float, count: int) -> dict[str, Any]:
    return number(Interval(value, float("nan"), float("nan"), count))


def _estimator_rows(table: _Table, resample: _Resampler) -> list[dict[str, Any]]:
    """How well every estimator tells wrong answers from right ones."""
    rows = []
    for group, members in table.groups().items():
        members = members[~np.isnan(table.correct[members])]
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
    """AUROC, AUPR of wrong answers, AURC and PRR with intervals."""
    wrong, size, ranking = 1 - correct, len(correct), Ranking.of(uncertainty)
    one = np.ones((1, size))

    def both(weights: Array) -> Array:
        area = Separation.of(ranking, wrong, weights).auroc()
        return np.stack([area, Kept.of(ranking, correct, weights).aurc()], axis=1)

    value, resampled = both(one)[0], bootstrap(both, counts)
    found = {
        "auroc": percentile_interval(value[0], resampled[:, 0], size),
        "aurc": percentile_interval(value[1], resampled[:, 1], size),
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


def _confidence_rows(table: _Table, threshold: float, resample: _Resampler) -> list[dict[str, Any]]:
    """Calibration of every confidence, as it is and with its power fitted on the validation questions."""
    held_out = np.flatnonzero((table.split == "validation") & ~np.isnan(table.correct))
    rows = []
    for group, members in table.groups().items():
        members = members[~np.isnan(table.correct[members])]
        if not len(members):
            continue
        for name, values in table.confidences.items():
            powers = {"": 1.0}
            if len(held_out):
                powers["+temperature"] = fit_power(values[held_out], table.correct[held_out])
            for suffix, power in powers.items():
                metrics = _calibration_metrics(
                    table, members, sharpen(values[members], power), threshold, resample
                )
                shared = {"model": table.model, "confidence": name + suffix, "group": group}
                rows.append({**shared, "temperature": 1 / power, "metrics": metrics})
    return rows


def _calibration_metrics(
    table: _Table, members: IntArray, confidence: Array, threshold: float, resample: _Resampler
) -> dict[str, Any]:
    correct, attempted = table.correct[members], table.attempted[members]
    counts, size = resample(len(members)), len(members)
    ece = calibration(confidence, correct).ece
    answered = attempted * (confidence >= threshold)
    return {
        "brier": number(bootstrap_mean(np.square(confidence - correct), counts)),
        "ece_15_equal_width": _plain(ece, size),
        "ece_floor": _plain(calibration_floor(confidence).mean, size),
        "answered": number(bootstrap_mean(answered, counts)),
        "penalised_score": number(bootstrap_mean(penalties(answered, correct, threshold), counts)),
    }


def _default_detection(table: _Table) -> dict[str, dict[str, list[str]]]:
    """Every out-of-distribution set against all test questions."""
    outside = dict.fromkeys(table.group[table.split == "ood"].tolist())
    return {f"{name} vs test": {"positive": [name], "negative": [ALL]} for name in outside}


def _detection_rows(
    table: _Table, questions: Mapping[str, Mapping[str, Sequence[str]]], resample: _Resampler
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
