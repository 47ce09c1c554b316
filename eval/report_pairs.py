"""Comparisons in the report: which model is better by paired differences, and which score finds the unknown.

Two separate intervals say little about a difference; only the paired differences of ``results.json`` are used to
mark a best value or to call one model better than another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.metric_names import METRICS, metric
from vlora.eval.report_format import (
    LENGTHS,
    Cell,
    cell,
    difference_cell,
    number,
    predictor_label,
    score_label,
    value_of,
)
from vlora.eval.report_marks import marked_cell, marked_predictor
from vlora.eval.report_tables import PREDICTOR_ORDER, Results, metrics_of, models_of
from vlora.eval.tables import at_the_mean

__all__ = ["best_keys", "comparison_tables", "detection_table", "forest_table"]

_ALIKE = ("variation_ratio", "reverse_mutual_information", "expected_pairwise_kl")


def best_keys(results: Results) -> set[tuple[str, str, str]]:
    """Return the (model, predictor, metric) that paired comparisons show to be better than every other model.

    A model is marked only if its value is the best of the column (group ``all``) and the 95 % interval of its paired
    difference to *each* other model that has the metric excludes 0 in its favour. A model without draws stands with
    its mean. No comparison, no mark.
    """
    beats: dict[tuple[str, str, str], set[str]] = {}
    for entry in results.get("comparisons") or []:
        winner = _winner(entry)
        if winner and entry.get("group", "all") == "all":
            loser = entry["b"] if winner == entry["a"] else entry["a"]
            beats.setdefault((winner, entry["predictor"], entry["metric"]), set()).add(loser)
    return {key for key, beaten in beats.items() if _tops(results, *key) and _rivals(results, *key) <= beaten}


def _tops(results: Results, model: str, predictor: str, key: str) -> bool:
    """Return whether no row of the main table has a better value."""
    rows = [r for r in results.get("rows") or [] if r["group"] == "all"]
    values = [value_of((r.get("metrics") or {}).get(key)) for r in rows]
    own, sign = value_of(metrics_of(results, model, predictor).get(key)), metric(key).direction
    return own is not None and all(v is None or sign * v <= sign * own for v in values)


def _rivals(results: Results, model: str, predictor: str, key: str) -> set[str]:
    """Return the other models that have the metric under the predictor, or at the mean for want of draws."""
    names = (predictor, at_the_mean(predictor) if predictor.startswith("samples") else predictor)
    return {
        other
        for other in models_of(results)
        if other != model and any(value_of(metrics_of(results, other, p).get(key)) is not None for p in names)
    }


def detection_table(results: Results) -> dict[str, Any]:
    """Return, per named pair of groups, a row per model and a column per predictor and score (AUROC)."""
    entries = [d for d in results.get("detection") or [] if _shown(d.get("predictor") or "", d["score"])]
    seen = dict.fromkeys((d.get("predictor") or "", d["score"]) for d in entries if d["score"] not in LENGTHS)
    columns = sorted(seen, key=lambda c: (_rank(c[0]),))
    lookup = {(d["name"], d["model"], d.get("predictor") or "", d["score"]): d for d in entries}
    known = [name for name in LENGTHS if any(d["score"] == name for d in entries)] or ["length"]
    lengths = {(d["name"], d["model"], d["score"]): d for d in entries if d["score"] in LENGTHS}
    blocks = []
    for name in dict.fromkeys(d["name"] for d in entries):
        first = next(d for d in entries if d["name"] == name)
        models = [
            m for m in models_of(results) if any(d["model"] == m and d["name"] == name for d in entries)
        ]
        rows = [
            {
                "model": m,
                "cells": [marked_cell(results, m, c, _auroc_cell(lookup.get((name, m, *c)))) for c in columns]
                + [_auroc_cell(lengths.get((name, m, score))) for score in known],
            }
            for m in models
        ]
        sides = {side: ", ".join(_names(first.get(side))) for side in ("positive", "negative")}
        blocks.append({"name": name, "rows": rows, **sides})
    heads = [{"predictor": predictor_label(p), "score": score_label(s)} for p, s in columns]
    heads += [{"predictor": "baseline", "score": score_label(score)} for score in known]
    return {"columns": heads, "blocks": blocks}


def _shown(predictor: str, score: str) -> bool:
    """Return whether a score has a column: not what says nearly the same as another one."""
    if score == "entropy_times_base":
        return predictor == "mean"
    return "+" not in predictor and score not in _ALIKE


def comparison_tables(results: Results) -> list[dict[str, Any]]:
    """Return the forest plots: every model against the first, then all other pairs, then single groups."""
    entries = [e for e in results.get("comparisons") or [] if value_of(e.get("difference")) is not None]
    plain = [e for e in entries if "+" not in e["predictor"]] or entries
    first = next(iter(models_of(results)), None)
    whole = [e for e in plain if e.get("group", "all") == "all"]
    parts = {
        f"Against {first}": [e for e in whole if first in (e["a"], e["b"])],
        "All other pairs": [e for e in whole if first not in (e["a"], e["b"])],
        "Group by group": [e for e in plain if e.get("group", "all") != "all"],
    }
    return [{"label": label, **forest_table(part, results=results)} for label, part in parts.items() if part]


def forest_table(
    entries: Sequence[Mapping[str, Any]], limit: int = 80, *, results: Results | None = None
) -> dict[str, Any]:
    """Return a forest plot as a table: a row per pair, predictor and group, a column per metric.

    All bars of a column share one scale; positions are percentages of the cell's width, 50 being no difference.

    Args:
        entries: Comparisons that all have a value.
        limit: Most rows to show; the rest is counted in ``left_out``.
        results: To mark what is not to be trusted.
    """
    found = dict.fromkeys(e["metric"] for e in entries)
    keys = [k for k in METRICS if k in found] + [k for k in found if k not in METRICS]
    reach = {k: max(_reach(e) for e in entries if e["metric"] == k) or 1.0 for k in keys}
    grouped: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for entry in entries:
        key = (entry.get("group", "all"), entry["a"], entry["b"], _predictors(entry, results or {}))
        grouped.setdefault(key, {})[entry["metric"]] = _forest_cell(entry, reach[entry["metric"]])
    rows = [
        {"group": g, "a": a, "b": b, "predictor": p, "cells": [cells.get(k) for k in keys]}
        for (g, a, b, p), cells in list(grouped.items())[:limit]
    ]
    return {"columns": [metric(k) for k in keys], "rows": rows, "left_out": max(len(grouped) - limit, 0)}


def _predictors(entry: Mapping[str, Any], results: Results) -> str:
    """Return which predictor stood on either side of a comparison."""
    sides = [
        marked_predictor(results, entry[side], entry.get(f"predictor_{side}") or entry["predictor"])
        for side in "ab"
    ]
    return sides[0] if sides[0] == sides[1] else " vs ".join(sides)


def _auroc_cell(entry: Mapping[str, Any] | None) -> Cell:
    """Return an AUROC tinted by its distance above chance."""
    if entry is None:
        return Cell()
    value = value_of(entry.get("auroc"))
    fpr = value_of(entry.get("fpr95"))
    title = f"FPR at 95 % TPR: {number(fpr)}" if fpr is not None else ""
    shade = None if value is None else max(0.0, 2 * value - 1)
    return cell(entry.get("auroc"), METRICS["auroc_correctness"], shade=shade, tone="good", title=title)


def _winner(entry: Mapping[str, Any]) -> str | None:
    """Return the better model of a paired comparison, or None where its interval includes 0."""
    low, high = (value_of(entry.get("difference"), end) for end in ("low", "high"))
    direction = metric(entry["metric"]).direction
    if low is None or high is None or not direction or low <= 0 <= high:
        return None
    return entry["a"] if (low > 0) == (direction > 0) else entry["b"]


def _reach(entry: Mapping[str, Any]) -> float:
    """Return the largest magnitude that a comparison's bar must show."""
    ends = [value_of(entry["difference"], end) for end in ("value", "low", "high")]
    return max(abs(v) for v in ends if v is not None)


def _forest_cell(entry: Mapping[str, Any], reach: float) -> dict[str, Any]:
    """Return text and bar of one difference, the verdict being ``better``, ``worse`` or ``open`` for model a."""
    difference, of = entry["difference"], metric(entry["metric"])
    value = value_of(difference) or 0.0
    low, high = (
        value if v is None else v for v in (value_of(difference, "low"), value_of(difference, "high"))
    )
    places = {k: round(50 + 46 * v / reach, 2) for k, v in (("at", value), ("left", low), ("right", high))}
    winner = _winner(entry)
    verdict = "open" if winner is None else "better" if winner == entry["a"] else "worse"
    return {"cell": difference_cell(difference, of), "verdict": verdict, **places}


def _names(groups: Any) -> list[str]:
    """Return a list of group names from a list, a single name or nothing."""
    return [groups] if isinstance(groups, str) else [str(g) for g in groups or []]


def _rank(predictor: str) -> int:
    """Return the place of a predictor in the report's order."""
    return PREDICTOR_ORDER.index(predictor) if predictor in PREDICTOR_ORDER else len(PREDICTOR_ORDER)
