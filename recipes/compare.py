"""``vlora compare``: a comparison of evaluations as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from vlora.eval.compare import compare_runs
from vlora.eval.compare_report import metric_of, verdict, write_comparison
from vlora.eval.report_format import number, predictor_label, value_of
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


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """One table per pair of models, with what it would take where nothing is shown."""
    blocks = []
    for pair in comparison["pairs"]:
        task = f"{pair['task']}: " if pair["task"] else ""
        names = " against ".join(predictor_label(pair[f"predictor_{side}"]) for side in "ab")
        paired = ", paired draws" if pair["draws"]["paired"] else ""
        head = f"{task}{pair['a']} - {pair['b']}: {names}, {pair['n']} items{paired}"
        blocks.append(head + "\n" + aligned([list(_HEAD), *(_line(test) for test in pair["tests"])]))
    blocks.append(
        f"p (Holm) is adjusted over all {comparison['family']} tests; level {comparison['level']:g}. "
        "Differences are later - earlier, with 95 % intervals."
    )
    return "\n\n".join(blocks)


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
