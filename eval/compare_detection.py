"""DeLong's tests of what tells groups apart, for one pair of models on the same items; see :mod:`vlora.eval.compare`.

Which groups are set against each other is what the evaluation asked (``detect``), else every out-of-distribution or
unanswerable group against the labelled test groups. A score stands against the same score of the other model, or, named
``EARLIER:LATER``, against another one: entropy of a model without draws against the information of one with draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.compare_parts import delong_test
from vlora.eval.comparisons import Detect, check_questions, default_detection, rows_of_groups
from vlora.eval.metrics.arrays import Array
from vlora.eval.tables import ModelTable

__all__ = ["detection_tests", "score_sides"]

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
) -> list[dict[str, Any]]:
    """One test per question and score.

    Args:
        a: The later model.
        b: The earlier model, on the same items.
        predictors: Predictor of a and of b.
        detect: Questions by name; None or empty takes the default ones.
        scores: Names as for :func:`score_sides`; ``all`` among them takes every score that both have, none all but the
            two further divergences between draws.

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
    tests = []
    for question, asked in (detect or default_detection([a])).items():
        positive, negative = (rows_of_groups(a, asked[side]) for side in ("positive", "negative"))
        if min(len(positive), len(negative)) < 2:
            continue
        rows = np.concatenate([positive, negative])
        rows_b = np.array([b.row_of[a.records[row].item] for row in rows], dtype=np.int64)
        classes = np.repeat([1.0, 0.0], [len(positive), len(negative)])
        for name, (own, other) in names.items():
            values = [_ranked(sides[0][own][rows]), _ranked(sides[1][other][rows_b])]
            test = delong_test(f"auroc {name}: {question}", values[0], values[1], classes)
            tests.append(test if own == other else {**test, "scores": {"a": own, "b": other}})
    return tests


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


def _ranked(values: Array) -> Array:
    return np.nan_to_num(values, posinf=_LARGEST)
