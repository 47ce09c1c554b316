"""``vlora compare``: evaluations of any kind set against each other, and a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.errors import DataError
from vlora.eval.compare import check_predictor, check_scores, compare_kinds
from vlora.eval.compare_choices import choice_kind
from vlora.eval.compare_report import (
    items_of,
    metric_of,
    predictor_of,
    resamples_remark,
    verdict,
    write_comparison,
)
from vlora.eval.generation.compare import answer_kind
from vlora.eval.report_format import number, value_of
from vlora.eval.tables import Resampler
from vlora.recipes.tables import aligned

__all__ = ["compare_runs", "comparison_table", "write_comparison"]

_HEAD = (
    "metric",
    "earlier",
    "later",
    "difference",
    "p",
    "p (Holm)",
    "items for 80 % power",
    "draws",
    "verdict",
)


def compare_runs(
    runs: Sequence[str],
    *,
    predictor: str | None = None,
    scores: Sequence[str] = (),
    level: float = 0.05,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more evaluations of the same items, of choices, texts or answers.

    Args:
        runs: Folders, or ``FOLDER:MODEL``; one folder with several models will do.
        predictor: Of choices and texts: which probabilities; see :func:`vlora.eval.compare.compare_runs`.
        scores: Uncertainties that are to find wrong answers (of answers) and tell groups apart: ``NAME`` of both runs,
            ``EARLIER:LATER`` for one of either, or ``all``; none takes what both have, of answers a few.
        level: Chance of any false claim in the whole comparison.
        num_bootstrap: Resamples of the items.
        seed: Seed of all resampling.

    Returns:
        As :func:`vlora.eval.compare.compare_kinds`.

    Raises:
        DataError: A run cannot be read, runs of two kinds, items differ, an option of the other kind, or there is
            nothing to compare.
    """
    resampler = Resampler(num_bootstrap, seed)
    kinds = [choice_kind(predictor, resampler, scores), answer_kind(resampler, scores)]
    found = compare_kinds(runs, kinds, resampler, level=level)
    check_predictor(found, predictor)
    answers = ["ungraded" in pair for pair in found["pairs"]]
    if predictor is not None and all(answers):
        raise DataError("--predictor is for choices and texts; answers are compared by --score")
    check_scores(found, scores)
    return found


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """One table per pair of models, with what it would take where nothing is shown."""
    blocks = []
    for pair in comparison["pairs"]:
        task = f"{pair['task']}: " if pair["task"] else ""
        names = " against ".join(predictor_of(pair, side) for side in "ab")
        paired = ", paired draws" if pair["draws"]["paired"] else ""
        head = f"{task}{pair['a']} - {pair['b']}: {names}, {items_of(pair)}{paired}"
        blocks.append(head + "\n" + aligned([list(_HEAD), *(_line(test) for test in pair["tests"])]))
    blocks.append(
        f"p (Holm) is adjusted over all {comparison['family']} tests; level {comparison['level']:g}. "
        "Differences are later - earlier, with 95 % intervals."
    )
    remark = resamples_remark(comparison)
    return "\n\n".join(blocks) + (f" {remark}" if remark else "")


def _line(test: Mapping[str, Any]) -> list[str]:
    of = metric_of(test)
    name = f"{of.label}: {of.hint}" if test["metric"].startswith("auroc ") else of.label
    low, high = (number(value_of(test[end]), 3) for end in ("low", "high"))
    return [
        f"{name} {of.arrow}".strip(),
        *(number(value_of(test[side]), 3) for side in "ba"),
        f"{number(value_of(test['difference']), 3)} [{low}, {high}]",
        *(number(test[name], 4) for name in ("p", "p_holm")),
        *("–" if test[name] is None else str(test[name]) for name in ("items_needed", "draws_needed")),
        verdict(test),
    ]
