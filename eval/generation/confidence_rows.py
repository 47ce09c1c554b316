"""How well the confidences of answers fit the share of right ones, as they are and at a fitted temperature."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlora.eval.generation.answer_draws import DRAWN_CONFIDENCES
from vlora.eval.generation.columns import AnswerTable, Resampler, plain_number
from vlora.eval.generation.confidence import sharpen
from vlora.eval.generation.score_rows import add_draw_errors
from vlora.eval.metrics.abstention import penalties
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import calibration, calibration_floor, width_gaps
from vlora.eval.metrics.intervals import Counts, bootstrap
from vlora.eval.tables import Metrics, measured

__all__ = ["confidence_rows"]

_ECE = "ece_15_equal_width"


def confidence_rows(table: AnswerTable, threshold: float, resample: Resampler) -> list[dict[str, Any]]:
    """Calibration of every confidence, as it is and with its power fitted on the validation questions.

    On resampled draws the power is fitted again.
    """
    weights = None if table.draws is None else table.draws.weights(resample.seed)
    fitted = {name: table.fitted_power(name) for name in table.confidences}
    refitted = {
        name: None if weights is None else table.drawn_powers(name, weights) for name in table.confidences
    }
    rows = []
    for group, members in table.groups().items():
        members = members[table.graded[members]]
        if not len(members):
            continue
        for name, values in table.confidences.items():
            drawn = _on_draws(table, name, members, weights)
            for suffix, power in {"": 1.0, "+temperature": fitted[name]}.items():
                if power is None:
                    continue
                powers = refitted[name] if suffix else None
                again = [
                    sharpen(one, 1.0 if powers is None else powers[place]) for place, one in enumerate(drawn)
                ]
                metrics = _metrics(
                    table, members, sharpen(values[members], power), again, threshold, resample
                )
                shared = {"model": table.model, "confidence": name + suffix, "group": group}
                rows.append({**shared, "temperature": 1 / power, "metrics": metrics})
    return rows


def _on_draws(table: AnswerTable, name: str, members: IntArray, weights: Array | None) -> Array:
    """A confidence on resampled draws, ``(R, N)``; no rows where draws do not make it."""
    if table.draws is None or weights is None or name not in DRAWN_CONFIDENCES:
        return np.empty((0, len(members)))
    return table.draws.confidence(name, members, weights)


def _metrics(
    table: AnswerTable,
    members: IntArray,
    sure: Array,
    drawn: Sequence[Array],
    threshold: float,
    resample: Resampler,
) -> Metrics:
    """All metrics of one confidence ``(N,)``; ``drawn`` is the same on resampled draws."""
    columns = _columns(table, members, sure, threshold)
    metrics = {name: _mean(values, resample(len(values))) for name, values in columns.items()}
    spoken = table.attempted[members] == 1
    if spoken.any():
        said, right = sure[spoken], table.correct[members][spoken]
        metrics[_ECE] = _calibration_error(said, right, resample(len(said)))
    add_draw_errors(metrics, table, [_numbers(table, members, one, threshold) for one in drawn])
    if spoken.any():
        metrics["ece_floor"] = plain_number(calibration_floor(sure[spoken]).mean, int(spoken.sum()))
    return metrics


def _columns(table: AnswerTable, members: IntArray, sure: Array, threshold: float) -> dict[str, Array]:
    """Per-answer values whose means are metrics; the Brier score is that of the attempts, if there are any."""
    correct, attempted = table.correct[members], table.attempted[members]
    answered = attempted * (sure >= threshold)
    found = {"answered": answered, "penalised_score": penalties(answered, correct, threshold)}
    if attempted.any():
        found["brier"] = np.square(sure - correct)[attempted == 1]
    return found


def _numbers(table: AnswerTable, members: IntArray, sure: Array, threshold: float) -> dict[str, float]:
    """The metrics themselves."""
    columns = _columns(table, members, sure, threshold)
    found = {name: float(values.mean()) for name, values in columns.items()}
    spoken = table.attempted[members] == 1
    if spoken.any():
        found[_ECE] = calibration(sure[spoken], table.correct[members][spoken]).ece
    return found


def _mean(values: Array, counts: Counts) -> dict[str, Any]:
    replicates = bootstrap(lambda weights: weights @ values, counts) / len(values)
    return measured(float(values.mean()), replicates, len(values))


def _calibration_error(sure: Array, right: Array, counts: Counts) -> dict[str, Any]:
    """Expected calibration error in 15 bins of equal width."""
    gaps, size = width_gaps(sure, right), len(sure)
    replicates = bootstrap(lambda weights: np.abs(weights @ gaps).sum(axis=1) / size, counts)
    return measured(calibration(sure, right).ece, replicates, size)
