"""Figures of the report: turns the ``figures`` part of ``results.json`` into captioned panels, one per model."""

from collections.abc import Mapping
from typing import Any

from vlora.eval.figure_blocks import Block, Entries, Look, entropy_block, reliability_block, risk_block
from vlora.eval.report_format import DASH, number, predictor_label, value_of
from vlora.eval.report_tables import PREDICTOR_ORDER, Results, group_names, metrics_of, models_of

__all__ = ["figure_blocks", "mistake_blocks"]

_COLOURS = {"mean": "c1", "samples": "c0", "mean+temperature": "c1", "samples+temperature": "c0"}
_LOOK = Look("predictor", _COLOURS, {name: predictor_label(name) for name in PREDICTOR_ORDER})


def figure_blocks(results: Results) -> dict[str, Block]:
    """Return the drawable figures by name: ``legend`` and ``panels`` of (caption, detail, svg).

    Names are ``reliability``, ``reliability_scaled``, ``risk_coverage`` and ``entropy_mi``; a figure without data
    is left out.
    """
    data, models = results.get("figures") or {}, models_of(results)

    def calibration(model: str, own: Entries) -> str:
        return _ece_line(results, own)

    def areas(model: str, own: Entries) -> str:
        found = [(e["predictor"], metrics_of(results, model, e["predictor"]).get("aurc")) for e in own]
        return " · ".join(f"{p} AURC {number(value_of(a))}" for p, a in found if value_of(a) is not None)

    reliability = _entries(data, "reliability")
    plain, scaled = ([e for e in reliability if ("+" in e["predictor"]) == has] for has in (False, True))
    curves = [e for e in _entries(data, "risk_coverage") if "+" not in e["predictor"]]
    known = group_names(results)
    blocks = {
        "reliability": reliability_block(models, plain, _LOOK, calibration),
        "reliability_scaled": reliability_block(models, scaled, _LOOK, calibration),
        "risk_coverage": risk_block(
            models, _with_thresholds(results, curves), _LOOK, areas, limit=_limit(results)
        ),
        "entropy_mi": entropy_block(
            models, _entries(data, "entropy_mi"), [g for k in known for g in k], known[2]
        ),
    }
    return {name: block for name, block in blocks.items() if block["panels"]}


def _with_thresholds(results: Results, entries: Entries) -> Entries:
    """Return risk-coverage entries with what the thresholds of the validation rows let through on the test rows."""
    found = {
        (one["model"], one["predictor"]): one.get("abstention")
        for one in results.get("promises") or []
        if one["set"] == "test"
    }
    return [{**e, "threshold": found.get((e["model"], e["predictor"]))} for e in entries]


def _limit(results: Results) -> float | None:
    """Return the error rate that the thresholds are to keep, if there are any."""
    rules = [one.get("abstention") or {} for one in results.get("promises") or []]
    return next((rule["promised"] for rule in rules if "promised" in rule), None)


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
