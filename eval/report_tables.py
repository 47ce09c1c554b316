"""Tables of the report: ``results.json`` in, rows of formatted cells out. No HTML is written here.

Every function takes the results dictionary as :mod:`vlora.eval.results` writes it and tolerates missing parts: a
table without content is empty, and the template leaves its section out.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vlora.eval.metric_names import METRICS, Metric, metric
from vlora.eval.report_format import Cell, cell, number, value_of
from vlora.eval.report_marks import marked_predictor

__all__ = [
    "PREDICTOR_ORDER",
    "group_names",
    "group_tables",
    "main_table",
    "metrics_of",
    "models_of",
    "predictors_of",
]

Results = Mapping[str, Any]
Kinds = tuple[list[str], list[str], list[str]]
MakeCell = Callable[[str, str, str], Cell]
PREDICTOR_ORDER = ("mean", "samples", "mean+temperature", "samples+temperature", "samples+draw_temperature")
_MAIN = {  # one or two numbers a question; the others are in the full table
    *(
        "accuracy",
        "perplexity",
        "nll",
        "nll_expectation_of_products",
        "nll_product_of_expectations",
        "kl_to_truth",
        "brier",
        "ece_15_equal_width",
        "smooth_ece",
    ),
    *("auroc_correctness", "aurc", "accuracy_at_80_coverage", "entropy"),
}
_MEASURES = ("kl_to_truth", "mean_confidence", "confident_share", "entropy", "mutual_information")


def models_of(results: Results) -> list[str]:
    """Return the models' names in their order of appearance."""
    named = [m["name"] for m in results.get("models") or []]
    return list(dict.fromkeys(named + [r["model"] for r in results.get("rows") or []]))


def predictors_of(results: Results, model: str) -> list[str]:
    """Return the predictors that ``model`` has rows for, in the fixed order of the report."""
    found = dict.fromkeys(r["predictor"] for r in results.get("rows") or [] if r["model"] == model)
    return [p for p in PREDICTOR_ORDER if p in found] + [p for p in found if p not in PREDICTOR_ORDER]


def metrics_of(results: Results, model: str, predictor: str, group: str = "all") -> Mapping[str, Any]:
    """Return the metrics of one row, or an empty mapping."""
    for row in results.get("rows") or []:
        if (row["model"], row["predictor"], row["group"]) == (model, predictor, group):
            return row.get("metrics") or {}
    return {}


def group_names(results: Results) -> tuple[list[str], list[str], list[str]]:
    """Return the groups with right answers, those with a known distribution of answers only, and those with neither.

    Each list is in order of appearance; ``all`` is no group of its own.
    """
    kinds: dict[str, int] = {}
    for row in results.get("rows") or []:
        if row["group"] != "all":
            found = row.get("metrics") or {}
            keys = (("accuracy", "nll"), ("kl_to_truth",))
            kind = next((i for i, names in enumerate(keys) if any(_stated(found.get(k)) for k in names)), 2)
            kinds[row["group"]] = min(kind, kinds.get(row["group"], 2))
    scored, known, unscored = ([g for g, kind in kinds.items() if kind == wanted] for wanted in range(3))
    return scored, known, unscored


def main_table(results: Results, best: Collection[tuple[str, str, str]] = ()) -> dict[str, Any]:
    """Return the columns and, per model, one row of cells for each predictor (group ``all``).

    Args:
        results: The results dictionary.
        best: The (model, predictor, metric) to mark, from :func:`vlora.eval.report_pairs.best_keys`.
    """
    rows = [r for r in results.get("rows") or [] if r["group"] == "all"]
    present = {k for r in rows for k, v in (r.get("metrics") or {}).items() if _stated(v)}
    keys = [k for k in METRICS if k in present and k in _MAIN]
    keys += sorted(present - set(METRICS))
    blocks = []
    for model in models_of(results):
        lines = []
        for predictor in predictors_of(results, model):
            found = metrics_of(results, model, predictor)
            cells = [_main_cell(found, metric(k), (model, predictor, k) in best) for k in keys]
            temperature = value_of(found.get("temperature"))
            detail = f"T = {number(temperature, 2)}" if temperature is not None else ""
            if found:
                label = marked_predictor(results, model, predictor)
                lines.append({"label": label, "detail": detail, "cells": cells})
        if lines:
            blocks.append({"model": model, "lines": lines})
    return {"columns": [metric(k) for k in keys], "blocks": blocks, "marked": bool(best)}


def group_tables(results: Results) -> list[dict[str, Any]]:
    """Return the heat tables models x groups: first what is known, then one table per measure of uncertainty.

    A single group is the main table over again, so it gives none.
    """
    kinds = group_names(results)
    if sum(len(names) for names in kinds) < 2:
        return []
    lines = [(m, p) for m in models_of(results) for p in _plain(predictors_of(results, m))]
    cells = [(METRICS["accuracy"], _knowledge_cells(results, kinds))]
    cells += [(METRICS[key], _measure_cells(results, METRICS[key])) for key in _MEASURES]
    tables = [_heat(results, lines, kinds, of, one) for of, one in cells]
    return [t for t in tables if any(c.text != Cell.text for row in t["rows"] for c in row["cells"])]


def _main_cell(found: Mapping[str, Any], of: Metric, best: bool) -> Cell:
    """Return a cell of the main table; ECE carries its floor, entropy its two parts."""
    note = ""
    if of.key.startswith(("ece", "smooth_ece")):
        floor, top = value_of(found.get(of.key), "floor"), value_of(found.get(of.key), "floor_high")
        note = f"floor {number(floor)}" if floor is not None else ""
        note += f", up to {number(top)}" if note and top is not None and of.key != "smooth_ece" else ""
    elif of.key == "entropy":
        data, model = (value_of(found.get(k)) for k in ("expected_entropy", "mutual_information"))
        note = (
            f"data {number(data)} · model {number(model)}" if data is not None and model is not None else ""
        )
    return cell(found.get(of.key), of, note=note, best=best)


def _plain(predictors: Sequence[str]) -> list[str]:
    """Return the predictors without temperature scaling, or all if there are no others."""
    return [p for p in predictors if "+" not in p] or list(predictors)


def _knowledge_cells(results: Results, kinds: Kinds) -> MakeCell:
    """Return what makes a cell of the first table: accuracy, closeness to the truth, or mean confidence."""
    _, known, unscored = kinds

    def one(model: str, predictor: str, group: str) -> Cell:
        found = metrics_of(results, model, predictor, group)
        sure = value_of(found.get("mean_confidence"))
        if group in unscored:
            return cell(found.get("mean_confidence"), METRICS["mean_confidence"], shade=sure, tone="risk")
        note = f"conf. {number(sure, 1, True)}" if sure is not None else ""
        if group in known:
            return cell(found.get("kl_to_truth"), METRICS["kl_to_truth"], note=note, **_closeness(found))
        shade = value_of(found.get("accuracy"))
        return cell(found.get("accuracy"), METRICS["accuracy"], note=note, shade=shade, tone="good")

    return one


def _measure_cells(results: Results, of: Metric) -> MakeCell:
    """Return what makes a cell of one measure of (un)certainty, tinted relative to the largest in the table."""
    values = [value_of((r.get("metrics") or {}).get(of.key)) for r in results.get("rows") or []]
    top = 1.0 if of.percent else max([v for v in values if v is not None], default=1.0) or 1.0

    def one(model: str, predictor: str, group: str) -> Cell:
        found = metrics_of(results, model, predictor, group)
        value = value_of(found.get(of.key))
        shade = None if value is None else max(0.0, value / top)
        style = _closeness(found) if of.key == "kl_to_truth" else {"shade": shade, "tone": "plain"}
        return cell(found.get(of.key), of, **style)

    return one


def _closeness(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tint of a divergence: full at 0, fading as exp(-KL)."""
    value = value_of(found.get("kl_to_truth"))
    return {"shade": None if value is None else math.exp(-max(value, 0.0)), "tone": "good"}


def _heat(
    results: Results, lines: Sequence[tuple[str, str]], kinds: Kinds, of: Metric, one: MakeCell
) -> dict[str, Any]:
    """Lay one heat table out: ``one(model, predictor, group)`` gives each cell."""
    groups = [g for names in kinds for g in names]
    rows = [
        {"model": m, "predictor": marked_predictor(results, m, p), "cells": [one(m, p, g) for g in groups]}
        for m, p in lines
    ]
    titles = ("with a right answer", "with a known distribution of answers", "without an answer")
    bands = [(title, len(names)) for title, names in zip(titles, kinds, strict=True) if names]
    heads = [{"name": g, "n": _count(results, g)} for g in groups]
    label = "Accuracy and confidence" if of.key == "accuracy" else of.label
    return {"label": label, "key": of.key, "bands": bands, "heads": heads, "rows": _spanned(rows)}


def _spanned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the first row of each model the number of rows it spans, the others 0."""
    names = [r["model"] for r in rows]
    return [
        {**r, "span": names.count(r["model"]) if names.index(r["model"]) == i else 0}
        for i, r in enumerate(rows)
    ]


def _count(results: Results, group: str) -> int | None:
    """Return the number of items of a group, from any metric that states it."""
    for row in results.get("rows") or []:
        if row["group"] == group:
            for entry in (row.get("metrics") or {}).values():
                count = value_of(entry, "n")
                if count is not None:
                    return int(count)
    return None


def _stated(entry: Any) -> bool:
    """Return whether a metric is defined, if only as infinite."""
    return value_of(entry) is not None or bool(value_of(entry, "infinite"))
