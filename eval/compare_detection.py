"""DeLong's tests of what tells groups apart, for one pair of models on the same items; see :mod:`vlora.eval.compare`.

The draws of choices are resampled, jointly where both models have equally many, and the variance of the difference over
them is added to DeLong's. Records of texts do not hold what their scores would be under other draws.

Which groups are set against each other is what the evaluation asked (``detect``), else every out-of-distribution or
unanswerable group against the labelled test groups. A score stands against the same score of the other model, or, named
``EARLIER:LATER``, against another one: entropy of a model without draws against the information of one with draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare_draws import joined_deviations, side_seeds
from vlora.eval.compare_parts import delong_test
from vlora.eval.comparisons import Detect, check_questions, default_detection, rows_of_groups
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.ranking import auroc
from vlora.eval.tables import DrawReplicates, ModelTable

__all__ = ["detection_tests", "ranked_last", "score_sides"]

_ON_REQUEST = ("reverse_mutual_information", "expected_pairwise_kl")
"""Near the mutual information: tested when named, since every further test makes the others stricter."""
_LARGEST = 1e300  # where an infinite score stands, so that it ranks last


def score_sides(name: str) -> tuple[str, str]:
    """Scores of the later and the earlier model of a name: ``NAME`` for both, or ``EARLIER:LATER``."""
    earlier, colon, later = name.partition(":")
    return (later, earlier) if colon else (name, name)


def detection_tests(
    a: ModelTable,
    b: ModelTable,
    predictors: Sequence[str],
    *,
    detect: Detect | None = None,
    scores: Sequence[str] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One test per question and score.

    Args:
        a: The later model.
        b: The earlier model, on the same items.
        predictors: Predictor of a and of b.
        detect: Questions by name; None or empty takes the default ones.
        scores: Names as for :func:`score_sides`; ``all`` among them takes every score that both have, none all but the
            two further divergences between draws.
        seed: Seed of the resampling of draws.

    Returns:
        Entries as of :func:`vlora.eval.compare_parts.delong_test`; of two different scores with ``scores``, the name on
        either side. Questions with fewer than two items on a side are left out.

    Raises:
        DataError: A model lacks a score that was named, or a question names a group that is not there.
    """
    sides = [table.scores(name) for table, name in zip((a, b), predictors, strict=True)]
    names = _chosen(
        scores, sides, [f"{t.model} ({name})" for t, name in zip((a, b), predictors, strict=True)]
    )
    check_questions([a], detect or {})
    questions = _questions(a, b, detect or default_detection([a]))
    deviations, units = _draw_deviations((a, b), predictors, names, questions, seed)
    tests = []
    for question in questions:
        for name, pair in names.items():
            values = [
                ranked_last(side[own][rows])
                for side, own, rows in zip(sides, pair, question.rows, strict=True)
            ]
            metric = f"auroc {name}: {question.name}"
            drawn = {"deviation": deviations.get(metric), "units": units}
            test = delong_test(metric, values[0], values[1], question.positive, **drawn)
            own, other = pair
            tests.append(test if own == other else {**test, "scores": {"a": own, "b": other}})
    return tests


@dataclass(frozen=True)
class _Question:
    """Groups to tell apart."""

    name: str
    rows: tuple[IntArray, IntArray]
    """The same items of a and of b, ``(N,)``."""
    positive: Array
    """1 for those that should look uncertain, ``(N,)``."""


def _questions(a: ModelTable, b: ModelTable, detect: Detect) -> list[_Question]:
    """Those with two items or more on either side."""
    found = []
    for name, asked in detect.items():
        parts = [rows_of_groups(a, asked[side]) for side in ("positive", "negative")]
        if min(map(len, parts)) < 2:
            continue
        rows = np.concatenate(parts)
        rows_b = np.array([b.row_of[a.records[row].item] for row in rows], dtype=np.int64)
        found.append(_Question(name, (rows, rows_b), np.repeat([1.0, 0.0], [len(part) for part in parts])))
    return found


def _draw_deviations(
    tables: Sequence[ModelTable],
    predictors: Sequence[str],
    names: Mapping[str, tuple[str, str]],
    questions: Sequence[_Question],
    seed: int,
) -> tuple[dict[str, Array], int]:
    """What draws add to every difference of areas, ``(R,)`` by metric, and the fewest units of a side.

    Nothing where no side has draws, or where the error of a side that has them cannot be told.
    """
    drawn = [predictor.startswith("samples") for predictor in predictors]
    layouts = [
        (table.num_samples, table.records[0].antithetic) if has else None
        for table, has in zip(tables, drawn, strict=True)
    ]
    found: list[DrawReplicates | None] = [None, None]
    for place, own in enumerate(side_seeds(layouts, seed)):
        if drawn[place] and questions:
            found[place] = _areas(tables[place], predictors[place], names, questions, place, own)
            if found[place] is None:
                return {}, 0
    return joined_deviations(found)


def _areas(
    table: ModelTable,
    predictor: str,
    names: Mapping[str, tuple[str, str]],
    questions: Sequence[_Question],
    place: int,
    seed: int,
) -> DrawReplicates | None:
    """AUROC of every question and score of one side on resampled draws, by metric."""
    rows = np.unique(np.concatenate([question.rows[place] for question in questions]))

    def numbers(scores: Mapping[str, Array], _: Array) -> dict[str, float]:
        found = {}
        for question in questions:
            at = np.searchsorted(rows, question.rows[place])
            for name, pair in names.items():
                values = ranked_last(scores[pair[place]][at])
                found[f"auroc {name}: {question.name}"] = auroc(values, question.positive)
        return found

    return table.on_resampled_draws(predictor, rows, numbers, seed=seed, refit=False)


def _chosen(
    scores: Sequence[str], sides: Sequence[Mapping[str, Array]], who: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Name -> score of a and of b."""
    found = {name: score_sides(name) for name in scores if name != "all"}
    if not scores or "all" in scores:
        left_out = () if scores else _ON_REQUEST
        found = {n: (n, n) for n in sides[0] if n in sides[1] and n not in left_out} | found
    for name, pair in found.items():
        for own, having, model in zip(pair, sides, who, strict=True):
            if own not in having:
                raise DataError(
                    f"--score {name}: {model} has no score {own!r}, only {', '.join(having)}; to set different scores "
                    "against each other name both, the earlier run's first: --score entropy:mutual_information"
                )
    return found


def ranked_last(values: Array) -> Array:
    """Scores with a large number in place of infinity, as rankings need it."""
    return np.nan_to_num(values, posinf=_LARGEST)
