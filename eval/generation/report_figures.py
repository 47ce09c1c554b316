"""Figures, thresholds and confident mistakes of a report of answers, from ``results.json`` alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vlora.eval.figure_blocks import Block, Entries, Look, entropy_block, reliability_block, risk_block
from vlora.eval.generation.columns import ALL
from vlora.eval.report_format import DASH, interval, number, value_of

__all__ = ["figure_blocks", "hollow_groups", "mistake_blocks", "promised", "threshold_table"]

_CONFIDENCES = {
    "max_probability": "probability of the answer",
    "mixture": "probability under the mixture of draws",
    "cluster_share": "share of samples of its meaning",
    "p_true": "p(True)",
}
"""What is drawn; the probability per token is no probability of being right, and stands in the table alone."""
_COLOURS = {"max_probability": "c1", "mixture": "c0", "cluster_share": "c2", "p_true": "c3"}
_RELIABILITY = Look(
    "confidence",
    {name + end: colour for name, colour in _COLOURS.items() for end in ("", "+temperature")},
    {name + end: words for name, words in _CONFIDENCES.items() for end in ("", "+temperature")},
)
_RISK = Look(
    "estimator",
    {"max_probability": "c1", "token_nll": "c3", "semantic_entropy": "c2", "mixture": "c0"},
    {
        "max_probability": "probability of the answer",
        "token_nll": "probability per token",
        "semantic_entropy": "semantic entropy",
        "mixture": "mixture of draws",
    },
)
_AXES = ("total: entropy over meanings", "epistemic: information")

Results = Mapping[str, Any]


def figure_blocks(results: Results, models: Sequence[str]) -> dict[str, Block]:
    """The drawable figures by name: ``reliability``, ``reliability_scaled``, ``risk_coverage``, ``entropy_mi``.

    A figure without data is left out; results of an earlier version have none.
    """
    data = results.get("figures") or {}
    drawn = [e for e in data.get("reliability", ()) if e["confidence"].partition("+")[0] in _CONFIDENCES]
    plain, scaled = ([e for e in drawn if ("+" in e["confidence"]) == has] for has in (False, True))
    curves = [
        {**e, "shown": _RISK.labels.get(e["estimator"], e["estimator"])}
        for e in data.get("risk_coverage", ())
    ]

    def calibration(model: str, own: Entries) -> str:
        return _calibration(results, model, own)

    def areas(model: str, own: Entries) -> str:
        return _areas(results, model, own)

    groups = [g for g in dict.fromkeys(row["group"] for row in results["answers"]) if g != ALL]
    blocks = {
        "reliability": reliability_block(models, plain, _RELIABILITY, calibration),
        "reliability_scaled": reliability_block(models, scaled, _RELIABILITY, calibration),
        "risk_coverage": risk_block(models, curves, _RISK, areas, limit=promised(results)),
        "entropy_mi": entropy_block(
            models, data.get("entropy_mi", ()), groups, hollow_groups(results), _AXES
        ),
    }
    for block in blocks.values():
        for panel in block["panels"]:
            panel["svg"] = Markup(panel["svg"])  # our own drawing: it holds no text from data
    return {name: block for name, block in blocks.items() if block["panels"]}


def hollow_groups(results: Results) -> list[str]:
    """Groups in which no model has a right answer: those without any."""
    right: dict[str, float] = {}
    for row in results["answers"]:
        share = value_of(row["metrics"].get("correct")) or 0.0
        right[row["group"]] = max(share, right.get(row["group"], 0.0))
    return [group for group, share in right.items() if not share]


def promised(results: Results) -> float | None:
    """Error rate that the fitted thresholds were to keep; None without thresholds."""
    rules = [entry.get("threshold") for entry in (results.get("figures") or {}).get("risk_coverage", ())]
    return next((rule["promised"] for rule in rules if rule), None)


def threshold_table(results: Results, models: Sequence[str]) -> dict[str, Any]:
    """What a threshold on each drawn score would let through, a block a model."""
    entries, blocks = (results.get("figures") or {}).get("risk_coverage", ()), []
    for model in models:
        lines = []
        for entry in entries:
            rule = entry.get("threshold")
            if entry["model"] == model and rule:
                name = _RISK.labels.get(entry["estimator"], entry["estimator"])
                note = f"fitted on {rule['fitted_on']} attempts"
                lines.append({"name": name, "note": note, "cells": _threshold_cells(rule)})
        if lines:
            blocks.append({"title": model, "rows": lines})
    return {"first": "score", "columns": ["answered", "wrong among them"], "blocks": blocks, "caption": ""}


def _threshold_cells(rule: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Share answered, and error rate with its interval."""
    answered = {"text": number(rule["coverage"], 1, True), "interval": "", "shade": None}
    if not rule["answered"]:
        note = "no threshold could be shown to keep it"
        return [{**answered, "interval": note}, {"text": DASH, "interval": "", "shade": None}]
    note = interval(rule, 1, True) + ("" if rule["holds"] else ", more than promised")
    return [answered, {"text": number(rule["risk"], 1, True), "interval": note, "shade": None}]


def mistake_blocks(results: Results, models: Sequence[str]) -> list[dict[str, Any]]:
    """Per model, the most probable wrong answers and the most probable answers to questions that have none."""
    blocks = []
    for model in models:
        own = [row for row in results.get("mistakes", ()) if row["model"] == model]
        parts = []
        for kind, title in ((True, "Wrong answers"), (False, "Answers to questions that have none")):
            rows = [_mistake(row) for row in own if row.get("answerable", bool(row["references"])) is kind]
            if rows:
                parts.append({"title": title, "labelled": kind, "rows": rows})
        if parts:
            blocks.append({"model": model, "parts": parts})
    return blocks


def _mistake(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "question": row["question"],
        "said": row["said"],
        "right": "; ".join(row["references"][:3]) or DASH,
        "confidence": number(row["confidence"]),
        "disagreement": number(row["disagreement"], 2),
        "entropy": number(row.get("entropy"), 2),
        "mutual_information": number(row.get("mutual_information")),
        "group": row["group"],
    }


def _calibration(results: Results, model: str, own: Entries) -> str:
    """Calibration errors of a panel in words, each with its floor."""
    parts = []
    for entry in own:
        name = entry["confidence"]
        rows = results["confidences"]
        found = next(
            (r["metrics"] for r in rows if (r["model"], r["confidence"], r["group"]) == (model, name, ALL)),
            {},
        )
        error, floor = (value_of(found.get(key)) for key in ("ece_15_equal_width", "ece_floor"))
        if error is not None:
            shown = name.partition("+")[0].replace("_", " ")
            parts.append(
                f"{shown} ECE {number(error)}" + ("" if floor is None else f" (floor {number(floor)})")
            )
    return " · ".join(parts)


def _areas(results: Results, model: str, own: Entries) -> str:
    """Areas under the risk-coverage curves of a panel."""
    rows = {
        r["estimator"]: r["metrics"]
        for r in results["estimators"]
        if (r["model"], r["group"]) == (model, ALL)
    }
    areas = {entry["shown"]: value_of(rows.get(entry["estimator"], {}).get("aurc")) for entry in own}
    return (
        "AURC: " + " · ".join(f"{name} {number(a)}" for name, a in areas.items())
        if any(areas.values())
        else ""
    )
