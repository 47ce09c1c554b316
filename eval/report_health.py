"""Does a posterior carry the data's signal? The table of posterior health in the report.

The numbers are those of ``Posterior.summary`` (``vlora.posterior.health``), as ``results.json`` holds them for every
model. What was not measured, or has no meaning for a model, is an en dash.
"""

from collections.abc import Mapping
from typing import Any

from vlora.eval.report_format import number, value_of

__all__ = ["health_table"]


def health_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for every model with a posterior: name, verdict in words, and the numbers behind it.

    Args:
        results: The content of ``results.json``; models without a posterior, such as plain adapters, are left out.
    """
    entries = [(entry["name"], entry.get("summary") or {}) for entry in results.get("models") or []]
    return [_row(name, summary) for name, summary in entries if summary.get("verdict")]


def _row(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value_of(summary.get(key)) for key in summary}
    rows = value_of(summary.get("reference_examples"))
    kind = "held-out" if summary.get("reference_held_out") else "training"
    return {
        "name": name,
        "verdict": summary["verdict"],
        "memory": _percent(found.get("effective_memory"), 1),
        "moved": _percent(found.get("share_moved")),
        "prior": _percent(found.get("prior_share")),
        "prior_dominated": _percent(found.get("prior_dominated")) if "prior_dominated" in found else "",
        "noise": number(found.get("noise_to_weight"), 2),
        "lost": _percent(found.get("share_below_spacing"), 1),
        "lost_bfloat16": _percent(found.get("share_below_spacing_bfloat16"), 1),
        "rank": number(found.get("rank_correlation"), 2),
        "rank_within": number(found.get("rank_correlation_within"), 2),
        "rows": f"{int(rows)} {kind} rows" if rows else "",
    }


def _percent(value: float | None, digits: int = 0) -> str:
    return number(value, digits, percent=True)
