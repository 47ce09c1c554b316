"""What one model's numbers say against another's, and uncertainty against what a model cannot know.

Comparisons are paired: both models answered the same items, which are resampled together, so what the items have in
common cancels. Detection asks whether a score is higher on one set of groups than on another.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.intervals import Interval, bootstrap, percentile_interval
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.tables import (
    ALL,
    PREDICTORS,
    DrawReplicates,
    ModelTable,
    Ratio,
    Resampler,
    at_the_mean,
    entry,
)

__all__ = [
    "Detect",
    "check_questions",
    "compare_models",
    "default_detection",
    "detect_groups",
    "rows_of_groups",
]

_AREA_RESAMPLES = 200  # of the area under the precision-recall curve, whose arrays are long
_SIDES = ("positive", "negative")
Detect = Mapping[str, Mapping[str, Sequence[str]]]
"""Name -> ``{"positive": groups, "negative": groups}``."""


def compare_models(tables: Sequence[ModelTable], resampler: Resampler) -> list[dict[str, Any]]:
    """Paired differences a - b: every pair of models on all test rows, every model against the first by group.

    A model without draws (a plain adapter) stands with its mean where the other's draws are compared; the keys
    ``predictor_a`` and ``predictor_b`` say what was used.
    """
    found = []
    for group in [ALL, *dict.fromkeys(group for table in tables for group in table.groups())]:
        pairs = combinations(tables, 2) if group == ALL else ((tables[0], other) for other in tables[1:])
        for b, a in pairs:
            found += [row for name in PREDICTORS for row in _compare(a, b, name, group, resampler)]
    return found


def _compare(
    a: ModelTable, b: ModelTable, predictor: str, group: str, resampler: Resampler
) -> Iterator[dict[str, Any]]:
    """Differences of one pair under one predictor on one group."""
    used = [_stand_in(table, predictor) for table in (a, b)]
    if None in used or predictor not in a.predictors + b.predictors:
        return
    name_a, name_b = str(used[0]), str(used[1])
    shared = [row for row in a.rows(group) if a.records[row].item in b.row_of]
    rows_a = np.array(shared, dtype=np.int64)
    rows_b = np.array([b.row_of[a.records[row].item] for row in shared], dtype=np.int64)
    ratios_a, ratios_b = a.ratios(name_a), b.ratios(name_b)
    if name_a == name_b == "mean":
        ratios_a.pop("nll_sequence", None)  # of one parameter vector it is the nll
    for metric in [name for name in ratios_a if name in ratios_b and shared]:
        difference = _difference(_at(ratios_a[metric], rows_a), _at(ratios_b[metric], rows_b), resampler)
        if difference is not None:
            head = {"a": a.model, "b": b.model, "predictor": predictor, "group": group, "metric": metric}
            yield {**head, "predictor_a": name_a, "predictor_b": name_b, "difference": difference}


def _stand_in(table: ModelTable, predictor: str) -> str | None:
    """The predictor itself, or the one at the mean for a model without draws."""
    fallback = at_the_mean(predictor) if predictor.startswith("samples") else predictor
    return next((name for name in (predictor, fallback) if name in table.predictors), None)


def _at(ratio: Ratio, rows: IntArray) -> Ratio:
    return ratio[0][rows], ratio[1][rows]


def _difference(a: Ratio, b: Ratio, resampler: Resampler) -> dict[str, Any] | None:
    """Interval of a difference of two ratios over the items where both are defined, None where there are none."""
    defined = ~np.isnan(a[0]) & ~np.isnan(b[0])
    size = int(defined.sum())
    if size == 0:
        return None
    table = np.stack([*a, *b], axis=1)[defined]
    infinite = int((~np.isfinite(table)).any(axis=1).sum())
    if infinite:
        return entry(Interval(float("nan"), float("nan"), float("nan"), size), infinite=infinite)

    def statistic(weights: Array) -> Array:
        sums = weights @ table
        return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]

    value = float(statistic(np.ones((1, size)))[0])
    return entry(percentile_interval(value, bootstrap(statistic, resampler.counts(size)), size))


def default_detection(tables: Sequence[ModelTable]) -> dict[str, dict[str, list[str]]]:
    """Every out-of-distribution or unanswerable group against the labelled test groups.

    A test group without right answers is unanswerable; one with known distributions of answers (ambiguous questions) is
    neither, and stays out.
    """
    known, odd = dict[str, None](), dict[str, None]()
    for table in tables:
        for group in table.groups():
            rows = table.rows(group)
            ambiguous = any(table.records[row].label_probs is not None for row in rows)
            if bool(((table.split[rows] == "test") & table.labelled[rows]).any()):
                known[group] = None
            elif bool((table.split[rows] == "ood").any()) or not ambiguous:
                odd[group] = None
    if not known or not odd:
        return {}
    questions = {f"{group} vs test": [group] for group in odd}
    if len(odd) > 1:
        questions["all unknown vs test"] = list(odd)
    return {name: {"positive": groups, "negative": list(known)} for name, groups in questions.items()}


def detect_groups(tables: Sequence[ModelTable], detect: Detect, resampler: Resampler) -> list[dict[str, Any]]:
    """AUROC, FPR95 and AUPR of every score for every question, model and predictor.

    Positive and negative items are resampled apart, since their numbers are given. ``length`` is the prompt's
    number of tokens: a baseline that knows nothing of the model (below .5: positive prompts are shorter); of texts with
    a prompt ``answer_length`` is the number of scored tokens. Of sampled choices the numbers carry the error of the
    draws, too.

    Raises:
        DataError: A question names a group that no record has, no group, or one group on both sides.
    """
    check_questions(tables, detect)
    placed = [
        {
            name: {side: rows_of_groups(table, sides[side]) for side in _SIDES}
            for name, sides in detect.items()
        }
        for table in tables
    ]
    drawn = [_on_draws(table, rows) for table, rows in zip(tables, placed, strict=True)]
    found = []
    for name, sides in detect.items():
        for table, own, draws in zip(tables, placed, drawn, strict=True):
            rows = own[name]
            if not len(rows["positive"]) or not len(rows["negative"]):
                continue
            scores = [
                (p, score, values) for p in table.predictors for score, values in table.scores(p).items()
            ]
            scores += [("mean", score, values) for score, values in table.length_scores().items()]
            for predictor, score, values in scores:
                head = {"model": table.model, "predictor": predictor, "score": score, "name": name}
                groups = {side: list(sides[side]) for side in _SIDES}
                numbers = _separation(values, rows, resampler, f"{name} {score}", draws.get(predictor))
                found.append({**head, **groups, **numbers})
    return found


def _on_draws(
    table: ModelTable, placed: Mapping[str, Mapping[str, IntArray]]
) -> dict[str, DrawReplicates | None]:
    """AUROC, FPR95 and AUPR of every question and score on resampled draws, by predictor.

    All questions see one pass over the draws.

    Args:
        table: The model.
        placed: Rows of both sides by question.
    """
    every = [some for sides in placed.values() for some in sides.values()]
    rows = np.unique(np.concatenate(every)) if every else np.empty(0, dtype=np.int64)

    def numbers(scores: Mapping[str, Array], _: Array) -> dict[str, float]:
        found = {}
        for name, sides in placed.items():
            both = np.searchsorted(rows, np.concatenate([sides[side] for side in _SIDES]))
            positive = np.repeat([1.0, 0.0], [len(sides[side]) for side in _SIDES])
            for score, values in scores.items():
                areas = _separated(values[both], positive) if len(both) else {}
                found |= {f"{name} {score} {area}": value for area, value in areas.items()}
        return found

    return {p: table.on_resampled_draws(p, rows, numbers) for p in table.predictors if len(rows)}


def rows_of_groups(table: ModelTable, groups: Sequence[str]) -> IntArray:
    """Rows of these groups, without their validation part."""
    return np.flatnonzero(np.isin(table.group, list(groups)) & (table.split != "validation"))


def _separated(values: Array, positive: Array) -> dict[str, float]:
    """AUROC, FPR95 and AUPR of scores, ``(N,)``, for the rows that are positive."""
    score = np.nan_to_num(values, posinf=np.finfo(np.float64).max)
    found = Separation.of(Ranking.of(score), positive, np.ones((1, len(score))))
    areas = {"auroc": found.auroc(), "fpr95": found.fpr_at_tpr(0.95), "aupr": found.average_precision()}
    return {name: float(area[0]) for name, area in areas.items()}


def _separation(
    values: Array,
    rows: Mapping[str, IntArray],
    resampler: Resampler,
    named: str,
    drawn: DrawReplicates | None,
) -> dict[str, Any]:
    """How well ``values`` are higher on the positive rows; ``named`` begins their names on resampled draws."""
    sizes = [len(rows["positive"]), len(rows["negative"])]
    positive = np.repeat([1.0, 0.0], sizes)
    both = values[np.concatenate([rows["positive"], rows["negative"]])]
    finite = np.nan_to_num(both, posinf=np.finfo(np.float64).max)
    counts = np.concatenate([resampler.counts(size, 1 + side) for side, size in enumerate(sizes)], axis=1)
    ranking, whole = Ranking.of(finite).merge_runs(positive), Ranking.of(finite)

    def statistic(weights: Array) -> Array:
        found = Separation.of(ranking, positive, weights)
        return np.stack([found.auroc(), found.fpr_at_tpr(0.95)], axis=1)

    def precision(weights: Array) -> Array:  # needs the order inside runs of one class, which are long arrays
        return Separation.of(whole, positive, weights).average_precision()

    replicates, few = bootstrap(statistic, counts), counts[:_AREA_RESAMPLES]
    items = {"auroc": replicates[:, 0], "fpr95": replicates[:, 1], "aupr": bootstrap(precision, few)}
    more = {"aupr": {"chance": float(positive.mean()), "resamples": len(few)}}
    found = {}
    for name, value in _separated(both, positive).items():
        plain = entry(percentile_interval(value, items[name], len(both)), **more.get(name, {}))
        found[name] = plain if drawn is None else drawn.add_to(plain, f"{named} {name}", items[name])
    return found


def check_questions(tables: Sequence[ModelTable], detect: Detect) -> None:
    """Refuse detection questions that the tables cannot answer.

    Raises:
        DataError: A question names a group that no record has, no group, or one group on both sides.
    """
    known = list(dict.fromkeys(group for table in tables for group in table.groups()))
    for name, sides in detect.items():
        if set(sides) != {"positive", "negative"}:
            raise DataError(
                f"detect {name!r} needs the keys positive and negative, got {', '.join(sides) or 'none'}"
            )
        for side, groups in sides.items():
            unknown = [group for group in groups if group not in known]
            if unknown or not groups or isinstance(groups, str):
                raise DataError(
                    f"detect {name!r} {side}: expected a list of groups out of {', '.join(known)}, got {groups!r}"
                )
        both = set(sides["positive"]) & set(sides["negative"])
        if both:
            raise DataError(
                f"detect {name!r}: group {sorted(both)[0]!r} cannot be both positive and negative"
            )
