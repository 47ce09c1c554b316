"""How well every estimator of answers ranks: wrong answers above right ones, and some groups above others.

Positive class of every ranking is the wrong answer, uncertainty is the score; answers that decline are not ranked. A
question that lacks an estimator (its judge failed) ranks as the least certain one and is counted in ``missing``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.generation.answer_draws import DRAWN_SCORES
from vlora.eval.generation.columns import AnswerTable, Resampler
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.crossed import crossed_fields
from vlora.eval.metrics.intervals import Counts, bootstrap
from vlora.eval.metrics.ranking import Ranking, Separation, average_precision
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import Kept
from vlora.eval.tables import Metrics, measured, replicates_of

__all__ = ["add_draw_errors", "detection_rows", "estimator_rows"]

COVERAGE = 0.8
"""Share of the most certain answers whose accuracy is reported."""
SLOW_RESAMPLES = 200
"""Resamples behind intervals of measures without a closed form over resamples (AUPR, PRR)."""
_QUICK = ("auroc", "aurc", "accuracy_at_80")
_SLOW: Mapping[str, Callable[[Array, Array], float]] = {
    "aupr": lambda uncertainty, correct: average_precision(uncertainty, 1 - correct),
    "prr": prediction_rejection_ratio,
}


def estimator_rows(table: AnswerTable, resample: Resampler) -> list[dict[str, Any]]:
    """How well every estimator tells wrong answers from right ones: one row per group and estimator."""
    rows = []
    for group, members in table.groups().items():
        members = members[table.ranked[members]]
        correct = table.correct[members]
        if len(members) < 2 or correct.min() == correct.max():
            continue
        for name, values in table.scores.items():
            shared = {"model": table.model, "estimator": name, "family": ESTIMATORS[name].family}
            missing = int(np.isinf(values[members]).sum())
            metrics = _ranking_metrics(values[members], correct, resample(len(members)))
            drawn = _on_draws(table, name, members, resample.seed)
            add_draw_errors(metrics, table, [_ranked(one, correct) for one in drawn])
            rows.append({**shared, "group": group, "missing": missing, "metrics": metrics})
    return rows


def detection_rows(
    table: AnswerTable, questions: Mapping[str, Mapping[str, Sequence[str]]], resample: Resampler
) -> list[dict[str, Any]]:
    """AUROC of every estimator between groups: one row per question and estimator.

    Raises:
        DataError: A question names a group that the data do not hold.
    """
    groups, rows = table.groups(), []
    for question, sides in questions.items():
        parts = [_members(groups, sides[side], question) for side in ("positive", "negative")]
        members = np.concatenate(parts)
        positive = np.repeat([1.0, 0.0], [len(part) for part in parts])
        counts = resample(len(members))
        for name, values in table.scores.items():
            area = _area(values[members], positive)
            value = float(area(np.ones((1, len(members))))[0])
            found = {"auroc": measured(value, bootstrap(area, counts), len(members))}
            drawn = [_area(one, positive) for one in _on_draws(table, name, members, resample.seed)]
            one = np.ones((1, len(members)))
            add_draw_errors(found, table, [{"auroc": float(own(one)[0])} for own in drawn])
            shared = {"model": table.model, "estimator": name, "family": ESTIMATORS[name].family}
            rows.append({**shared, "question": question, **found})
    return rows


def add_draw_errors(metrics: Metrics, table: AnswerTable, drawn: Sequence[Mapping[str, float]]) -> None:
    """Add the error of the draws, and the interval over questions and draws, in place.

    Args:
        metrics: Entries that remember their replicates.
        table: The model.
        drawn: The same numbers on resampled draws, one mapping a resample; none where draws do not make them.
    """
    for name, found in metrics.items():
        items = replicates_of(found)
        if drawn and items is not None and table.draws is not None:
            replicates = np.array([one[name] for one in drawn])
            more = crossed_fields(found, items, replicates, found["n"], table.draws.num_units)
            metrics[name] = found | more
        else:
            metrics[name] = dict(found)


def _members(groups: Mapping[str, IntArray], names: Sequence[str], question: str) -> IntArray:
    """Rows of some groups together."""
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise DataError(f"detect.{question}: no group {unknown[0]!r}; the data hold {', '.join(groups)}")
    return np.unique(np.concatenate([groups[name] for name in names]))


def _on_draws(table: AnswerTable, name: str, members: IntArray, seed: int) -> Array:
    """An estimator on resampled draws, ``(R, N)``; no rows where draws do not make it."""
    if table.draws is None or name not in DRAWN_SCORES:
        return np.empty((0, len(members)))
    return table.draws.scores(name, members, table.draws.weights(seed))


def _ranking_metrics(uncertainty: Array, correct: Array, counts: Counts) -> Metrics:
    """AUROC, AUPR of wrong answers, AURC, accuracy of the 80 % most certain answers, and PRR, with intervals."""
    size, values = len(correct), _ranked(uncertainty, correct)
    quick = bootstrap(_quick(uncertainty, correct), counts)
    found = {name: measured(values[name], quick[:, place], size) for place, name in enumerate(_QUICK)}
    rows = [np.repeat(np.arange(size), count) for count in counts[:SLOW_RESAMPLES]]
    for name, measure in _SLOW.items():
        replicates = np.array([measure(uncertainty[chosen], correct[chosen]) for chosen in rows])
        found[name] = measured(values[name], replicates, size)
    return found


def _ranked(uncertainty: Array, correct: Array) -> dict[str, float]:
    """The measures of :func:`_ranking_metrics` themselves."""
    quick = _quick(uncertainty, correct)(np.ones((1, len(correct))))[0]
    slow = {name: measure(uncertainty, correct) for name, measure in _SLOW.items()}
    return dict(zip(_QUICK, quick.tolist(), strict=True)) | slow


def _quick(uncertainty: Array, correct: Array) -> Callable[[Array], Array]:
    """Measures with a closed form over resamples: counts ``(b, N)`` to ``(b, 3)``."""
    ranking, wrong = Ranking.of(uncertainty), 1 - correct

    def measures(weights: Array) -> Array:
        kept = Kept.of(ranking, correct, weights)
        area = Separation.of(ranking, wrong, weights).auroc()
        return np.stack([area, kept.aurc(), kept.accuracy_at(COVERAGE)], axis=1)

    return measures


def _area(uncertainty: Array, positive: Array) -> Callable[[Array], Array]:
    """AUROC of resamples: counts ``(b, N)`` to ``(b,)``."""
    ranking = Ranking.of(uncertainty)
    return lambda weights: Separation.of(ranking, positive, weights).auroc()
