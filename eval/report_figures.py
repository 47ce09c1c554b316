"""Figures of the report: turns the ``figures`` part of ``results.json`` into captioned panels, one per model.

Small multiples share their axes, so panels can be compared by eye; a legend stands once above the panels. At most
``MAX_POINTS`` dots are drawn per scatter panel, taken at even distances from each group so that nothing is random.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.plots import (
    PALETTE_SIZE,
    Curve,
    PointSet,
    entropy_scatter,
    reliability_diagram,
    risk_coverage,
)
from vlora.eval.report_format import DASH, number, predictor_label, value_of
from vlora.eval.report_tables import Results, group_names, metrics_of, models_of

__all__ = ["MAX_POINTS", "figure_blocks", "mistake_blocks"]

MAX_POINTS = 600
_CURVE_STEPS = 160
_COLOURS = {"mean": "c1", "samples": "c0", "mean+temperature": "c1", "samples+temperature": "c0"}
Entries = Sequence[Mapping[str, Any]]


def figure_blocks(results: Results) -> dict[str, dict[str, Any]]:
    """Return the drawable figures by name: ``legend`` and ``panels`` of (caption, detail, svg).

    Names are ``reliability``, ``reliability_scaled``, ``risk_coverage`` and ``entropy_mi``; a figure without data
    is left out.
    """
    data = results.get("figures") or {}
    reliability = _entries(data, "reliability")
    blocks = {
        "reliability": _reliability(results, [e for e in reliability if "+" not in e["predictor"]]),
        "reliability_scaled": _reliability(results, [e for e in reliability if "+" in e["predictor"]]),
        "risk_coverage": _risk_coverage(results, _entries(data, "risk_coverage")),
        "entropy_mi": _entropy(results, _entries(data, "entropy_mi")),
    }
    return {name: block for name, block in blocks.items() if block["panels"]}


def mistake_blocks(results: Results, most: int = 8) -> list[dict[str, Any]]:
    """Return, per model, the most confident wrong answers and the most confident answers where none is right."""
    data = results.get("figures") or {}
    blocks = []
    for model in models_of(results):
        wrong, unanswerable = (
            sorted((e for e in _entries(data, name) if e["model"] == model), key=_minus_confidence)[:most]
            for name in ("mistakes", "unanswerable")
        )
        if wrong or unanswerable:
            said_by = predictor_label((wrong or unanswerable)[0].get("predictor") or "")
            rows = {"wrong": [_answer(e) for e in wrong], "unanswerable": [_answer(e) for e in unanswerable]}
            blocks.append({"model": model, "predictor": said_by, **rows})
    return blocks


def _reliability(results: Results, entries: Entries) -> dict[str, Any]:
    """Return one reliability panel per model with all of its predictors."""
    panels = []
    for model, own in _by_model(results, entries):
        curves = [_bins_to_curve(e) for e in own]
        key = "|".join([model, *(e["predictor"] for e in own)])
        if any(len(c.x) for c in curves):
            panels.append(
                {
                    "caption": model,
                    "detail": _ece_line(results, own),
                    "svg": reliability_diagram(curves, key=key),
                }
            )
    return {"legend": _predictor_legend(entries), "panels": panels}


def _bins_to_curve(entry: Mapping[str, Any]) -> Curve:
    """Return the occupied bins of a reliability entry as a curve with its band."""
    bins = [b for b in entry["bins"] if b.get("n") and value_of(b.get("confidence")) is not None]
    full = all(value_of(b.get(end)) is not None for b in bins for end in ("low", "high"))
    return Curve(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        colour=_COLOURS.get(entry["predictor"], "c2"),
        low=[b["low"] for b in bins] if full else (),
        high=[b["high"] for b in bins] if full else (),
        counts=[b["n"] for b in bins],
    )


def _ece_line(results: Results, entries: Entries) -> str:
    """Return the calibration errors of a panel in words, each with its floor."""
    parts = []
    for entry in entries:
        ece = metrics_of(results, entry["model"], entry["predictor"]).get("ece_15_equal_width")
        if value_of(ece) is not None:
            floor = value_of(ece, "floor")
            extra = f" (floor {number(floor)})" if floor is not None else ""
            parts.append(f"{entry['predictor'].split('+')[0]} ECE {number(value_of(ece))}{extra}")
    return " · ".join(parts)


def _risk_coverage(results: Results, entries: Entries) -> dict[str, Any]:
    """Return one risk-coverage panel per model, the other models' curves behind it in grey."""
    entries = [e for e in entries if "+" not in e["predictor"]]
    risks = [r for e in entries for c, r in zip(e["coverage"], e["risk"], strict=True) if c >= 0.05]
    top = min(1.0, 1.08 * max(risks, default=1.0) + 0.01)
    panels, grouped = [], _by_model(results, entries)
    for model, own in grouped:
        behind = [_risk_curve(others[-1], steps=60) for name, others in grouped if name != model]
        svg = risk_coverage([_risk_curve(e) for e in own], behind, top=top, key=model)
        areas = [(e, value_of(metrics_of(results, model, e["predictor"]).get("aurc"))) for e in own]
        detail = " · ".join(f"{e['predictor']} AURC {number(a)}" for e, a in areas if a is not None)
        panels.append({"caption": model, "detail": detail, "svg": svg})
    legend = _predictor_legend(entries)
    if len(panels) > 1:
        legend.append({"colour": "muted", "label": "the other models", "hollow": False})
    return {"legend": legend, "panels": panels}


def _risk_curve(entry: Mapping[str, Any], steps: int = _CURVE_STEPS) -> Curve:
    """Return a risk-coverage entry as a curve of at most ``steps`` points, both ends kept."""
    x, y = _thin(entry["coverage"], steps), _thin(entry["risk"], steps)
    return Curve(x, y, colour=_COLOURS.get(entry["predictor"], "c2"))


def _entropy(results: Results, entries: Entries) -> dict[str, Any]:
    """Return one scatter panel per model, coloured by group, all on the same axes."""
    scored, known, unscored = group_names(results)
    order = dict.fromkeys([*scored, *known, *unscored, *(e["group"] for e in entries)])
    slots = {group: slot for slot, group in enumerate(order)}
    right = _largest(entries, "entropy")
    top = _largest(entries, "mutual_information")
    panels = []
    for model, own in _by_model(results, entries):
        room = max(MAX_POINTS // max(len(own), 1), 1)
        points = [_points(e, slots[e["group"]], room, hollow=e["group"] in unscored) for e in own]
        panels.append(
            {"caption": model, "detail": "", "svg": entropy_scatter(points, right=right, top=top, key=model)}
        )
    used = {e["group"] for e in entries}
    legend = [
        {"colour": f"c{slots[g] % PALETTE_SIZE}", "label": g, "hollow": g in unscored}
        for g in order
        if g in used
    ]
    return {"legend": legend, "panels": panels}


def _points(entry: Mapping[str, Any], slot: int, room: int, *, hollow: bool) -> PointSet:
    """Return at most ``room`` drawable points of one group."""
    pairs = zip(entry["entropy"], entry["mutual_information"], strict=True)
    drawable = [p for p in pairs if None not in p and all(math.isfinite(v) for v in p)]
    kept = _thin(drawable, room)
    return PointSet([p[0] for p in kept], [p[1] for p in kept], slot=slot, hollow=hollow)


def _answer(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one answer as text cells; a choice is named where the choices are known."""
    choices = entry.get("choices") or []

    def name(index: Any) -> str:
        if index is None:
            return DASH
        return str(choices[index]) if isinstance(index, int) and index < len(choices) else str(index)

    return {
        "item": entry.get("item", ""),
        "group": entry.get("group", ""),
        "text": entry.get("text") or "",
        "said": name(entry.get("prediction")),
        "right": name(entry.get("label")),
        "confidence": number(value_of(entry.get("confidence")), 1, True),
        "entropy": number(value_of(entry.get("entropy"))),
        "mutual_information": number(value_of(entry.get("mutual_information"))),
    }


def _minus_confidence(entry: Mapping[str, Any]) -> float:
    """Sort key: the most confident first, unknown confidence last."""
    return -(value_of(entry.get("confidence")) or 0.0)


def _entries(data: Mapping[str, Any], name: str) -> Entries:
    """Return the entries of one figure, an absent figure being empty."""
    return data.get(name) or []


def _by_model(results: Results, entries: Entries) -> list[tuple[str, Entries]]:
    """Return the entries of each model that has any, in the report's order of models."""
    grouped = [(m, [e for e in entries if e["model"] == m]) for m in models_of(results)]
    return [(m, own) for m, own in grouped if own]


def _predictor_legend(entries: Entries) -> list[dict[str, Any]]:
    """Return the legend entries of the predictors that occur."""
    found = dict.fromkeys(e["predictor"] for e in entries)
    return [{"colour": _COLOURS.get(p, "c2"), "label": predictor_label(p), "hollow": False} for p in found]


def _largest(entries: Entries, key: str) -> float:
    """Return the largest finite value of a column over all entries, at least 0.05 so that axes have a length."""
    values = [v for e in entries for v in e[key] if v is not None and math.isfinite(v)]
    return max([0.05, *values])


def _thin(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` elements at even distances, first and last included."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / max(most - 1, 1)
    return [values[round(i * step)] for i in range(most)]
