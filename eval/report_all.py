"""The full tables of the report, which stand folded under the short ones: every metric, every detection score.

Each name comes with its definition and direction, each number with its interval; nothing of ``rows`` and ``detection``
is left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlora.eval.metric_names import FAMILIES, Metric, metric
from vlora.eval.report_format import (
    Cell,
    amount,
    cell,
    difference_cell,
    number,
    value_of,
)
from vlora.eval.report_marks import marked_predictor, marked_score
from vlora.eval.report_tables import Results, metrics_of, models_of, predictors_of

__all__ = ["all_detection", "all_metrics", "cost_table", "promises", "wrong_answers"]

_SHARE = Metric("share", "share", 0, 1, True)
_AREA = {
    "auroc": Metric("auroc", "AUROC", 1),
    "aupr": Metric("aupr", "AUPR", 1),
    "fpr95": Metric("fpr95", "FPR95", -1),
}
_WRONG = {
    "auroc": Metric("auroc", "AUROC", 1),
    "auroc_gain": Metric("auroc_gain", "over max probability"),
    "aurc": Metric("aurc", "AURC", -1),
    "prr": Metric("prr", "PRR", 1),
}


def all_metrics(results: Results) -> list[dict[str, Any]]:
    """Return, per model, all metrics of the group ``all`` by family: a row per metric, a column per predictor."""
    blocks = []
    for model in models_of(results):
        found = {p: metrics_of(results, model, p) for p in predictors_of(results, model)}
        found = {predictor: metrics for predictor, metrics in found.items() if metrics}
        present = dict.fromkeys(key for metrics in found.values() for key in metrics)
        known = {of.key for family in FAMILIES.values() for of in family}
        families = {name: [of for of in family if of.key in present] for name, family in FAMILIES.items()}
        families["Others"] = [metric(key) for key in present if key not in known]
        parts = [
            {"name": name, "rows": [{"metric": of, "cells": _cells(found, of)} for of in family]}
            for name, family in families.items()
            if family
        ]
        if parts:
            heads = [marked_predictor(results, model, predictor) for predictor in found]
            blocks.append({"model": model, "predictors": heads, "families": parts})
    return blocks


def all_detection(results: Results) -> list[dict[str, Any]]:
    """Return a row per question, model, predictor and score with all three areas and rates."""
    return [
        {
            **{"name": entry["name"], "model": entry["model"]},
            "score": marked_score(results, entry["model"], entry["score"]),
            "predictor": marked_predictor(results, entry["model"], entry.get("predictor") or ""),
            "cells": [_with_notes(entry.get(key), of) for key, of in _AREA.items()],
        }
        for entry in results.get("detection") or []
    ]


def wrong_answers(results: Results) -> list[dict[str, Any]]:
    """Return a row per model, predictor and score: how well it finds that predictor's wrong answers."""
    return [
        {
            **{"model": entry["model"], "score": marked_score(results, entry["model"], entry["score"])},
            "predictor": marked_predictor(results, entry["model"], entry["predictor"]),
            "cells": [
                _difference(entry.get(key), of) if key == "auroc_gain" else _with_notes(entry.get(key), of)
                for key, of in _WRONG.items()
            ],
        }
        for entry in results.get("wrong_answers") or []
    ]


def cost_table(results: Results) -> list[dict[str, Any]]:
    """Return a row per model and estimator: passes and forward-equivalents per item, tokens, seconds."""
    rows = []
    for entry in (results.get("cost") or {}).get("by_estimator") or []:
        cells = [number(value_of(entry.get("passes")), 1), number(value_of(entry.get("forwards")), 2)]
        cells += [amount(key, entry.get(key)) for key in ("tokens", "seconds")]
        rows.append({"model": entry["model"], "name": entry["estimator"].replace("_", " "), "cells": cells})
    return rows


def promises(results: Results) -> list[dict[str, Any]]:
    """Return a row per model, predictor and set: coverage and size of the sets, share answered and risk."""
    rows = []
    for entry in results.get("promises") or []:
        sets = {rule["method"]: _coverage(rule) for rule in entry.get("conformal") or ()}
        risk = entry.get("abstention")
        silent = entry.get("unanswerable")
        cells = [sets.get("lac", Cell()), sets.get("aps", Cell()), *_risk(risk)]
        if silent and not risk:
            share = f"{silent['answered']} of {silent['rows']}"
            cells[2] = Cell(share, note="without a right answer")
        head = {key: entry[key] for key in ("model", "set", "fitted_on")}
        label = marked_predictor(results, entry["model"], entry["predictor"])
        rows.append({**head, "predictor": label, "cells": cells})
    return rows


def _coverage(rule: Mapping[str, Any]) -> Cell:
    entry = {"value": rule["coverage"], "low": rule["low"], "high": rule["high"]}
    note = f"mean size {number(rule['mean_size'], 2)}" + ("" if rule["holds"] else " · less than promised")
    return cell(entry, _SHARE, note=note)


def _risk(risk: Mapping[str, Any] | None) -> list[Cell]:
    """Return the share answered and the error rate among it."""
    if not risk:
        return [Cell(), Cell()]
    note = "" if risk["holds"] else "more than promised"
    entry = {"value": risk["risk"], "low": risk["low"], "high": risk["high"]}
    return [
        cell({"value": risk["coverage"]}, _SHARE),
        cell(entry if risk["answered"] else None, _SHARE, note=note),
    ]


def _cells(found: Mapping[str, Mapping[str, Any]], of: Metric) -> list[Cell]:
    return [_with_notes(metrics.get(of.key), of) for metrics in found.values()]


def _difference(entry: Any, of: Metric) -> Cell:
    return replace(difference_cell(entry, of), note=_with_notes(entry, of).note)


def _with_notes(entry: Any, of: Metric) -> Cell:
    """Return a cell that says what the number is to be read against, and what the draws add to its interval."""
    if not isinstance(entry, Mapping):
        return Cell()
    shown = {name: value_of(entry, name) for name in ("floor", "floor_high", "chance")}
    notes = [f"{name.replace('_high', ' up to')} {number(v)}" for name, v in shown.items() if v is not None]
    low, high = value_of(entry, "crossed_low"), value_of(entry, "crossed_high")
    if low is not None and high is not None:
        pair = (
            number(v, of.digits, of.percent).removesuffix("\N{NARROW NO-BREAK SPACE}%") for v in (low, high)
        )
        notes.append(f"with draws [{', '.join(pair)}]")
    return cell(entry, of, note=" · ".join(notes)) if notes else cell(entry, of)
