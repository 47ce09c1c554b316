"""Tables for the terminal, made from what the stages wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["aligned", "interval", "results_table"]

_COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece_15_equal_width": "ECE (floor)",
    "auroc_correctness": "AUROC",
    "token_accuracy": "token accuracy",
    "nll_per_token": "NLL per token",
}


def results_table(results: Mapping[str, Any]) -> str:
    """One line per model and predictor over all labelled test rows, with 95 % intervals.

    Args:
        results: Content of ``results.json``.
    """
    rows = [row for row in results["rows"] if row["group"] == "all"]
    present = [name for name in _COLUMNS if any(name in row["metrics"] for row in rows)]
    lines = [["model", "predictor", *(_COLUMNS[name] for name in present)]]
    for row in rows:
        cells = [interval(row["metrics"].get(name)) for name in present]
        lines.append([row["model"], row["predictor"], *cells])
    return aligned(lines)


def interval(metric: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    """``value [low, high]``, with the finite-sample floor where there is one; a dash for what is not defined."""
    if metric is None or metric.get("value") is None:
        return "–"
    scale, digits = (100, 0) if percent else (1, 3)
    value, low, high = (
        scale * (metric[key] if metric[key] is not None else float("nan")) for key in ("value", "low", "high")
    )
    text = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{text} ({metric['floor']:.3f})" if metric.get("floor") is not None else text


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first line set off as a head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])
