"""Figures of the merge pages as inline SVG: the weightings of a preview, and the conflict map of a merge."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.plots import COLOURS, panel, svg
from vlora.merge.preview import Preview

__all__ = ["ConflictMap", "conflict_maps", "preview_figure"]

_DOTS = 1500
ConflictMap = dict[str, Any]


def preview_figure(preview: Preview) -> tuple[str, str]:
    """Draw every weighting as a dot, the front as a line, the named ones as large marks.

    Args:
        preview: Of two tasks: their losses against each other. Of more: the average against the worst.

    Returns:
        One ``<svg>`` element and its caption. Down and left is better.
    """
    losses = preview.increase
    two = len(preview.tasks) == 2
    x, y = (losses[:, 0], losses[:, 1]) if two else (losses.mean(1), losses.amax(1))
    figure, (axes,) = panel(height=2.9)
    shown = slice(None, None, max(1, len(x) // _DOTS))
    style: dict[str, Any] = {"ls": "none", "marker": "o", "mew": 0}
    axes.plot(x[shown].tolist(), y[shown].tolist(), color=COLOURS["muted"], ms=1.6, alpha=0.35, **style)
    front = sorted(preview.front, key=lambda i: x[i].item())
    points = [(x[i].item(), y[i].item()) for i in front]
    axes.plot(
        *zip(*points, strict=True), color=COLOURS["c0"], lw=1.2 if two else 0, marker="o", ms=2.2, mew=0
    )
    for number, index in enumerate(preview.named.values()):
        marker = {"color": COLOURS[f"c{number + 1}"], "marker": "DsX"[number % 3], "ms": 6.5, "ls": "none"}
        axes.plot([x[index].item()], [y[index].item()], **marker)
    limits = [max(1.05, v.quantile(0.9).item()) for v in (x, y)]
    axes.set(xlim=(0, limits[0]), ylim=(0, limits[1]))
    axes.set(
        xlabel="first task" if two else "average of the tasks", ylabel="second task" if two else "worst task"
    )
    words = (
        f"across {preview.tasks[0]}, up {preview.tasks[1]}"
        if two
        else "across the average, up the worst task"
    )
    return svg(
        figure, "preview", "predicted loss increase"
    ), f"Predicted loss increase relative to having no adapter: {words}"


def conflict_maps(
    modules: Mapping[str, Mapping[str, Any]], measure: str, full: float = 1.0
) -> list[ConflictMap]:
    """Lay a measure per module and adapter out as maps: layers across, kinds of module down.

    Args:
        modules: ``modules`` of ``merge_report.json``.
        measure: Key of a module's entry that holds one number per adapter, or one number.
        full: Value of the darkest cell.

    Returns:
        One map per adapter: title, column and row labels, cells with position, value and shade in [0, 1].
    """
    values = {m: v for m, v in ((m, row.get(measure)) for m, row in modules.items()) if v is not None}
    tables = {m: v if isinstance(v, Mapping) else {"": v} for m, v in values.items()}
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    return [
        _map(name, {m: t[name] for m, t in tables.items() if t.get(name) is not None}, full) for name in names
    ]


def _map(name: str, values: Mapping[str, float], full: float) -> ConflictMap:
    places = {module: _place(module) for module in values}
    columns = sorted({layer for layer, _ in places.values()})
    rows = list(dict.fromkeys(kind for _, kind in places.values()))
    cells = [
        {
            "x": columns.index(layer),
            "y": rows.index(kind),
            "module": module,
            "value": values[module],
            "shade": min(1.0, max(0.0, values[module] / full)),
        }
        for module, (layer, kind) in places.items()
    ]
    labels: Sequence[str] = ["" if layer < 0 else str(layer) for layer in columns]
    return {"name": name, "columns": labels, "rows": rows, "cells": cells}


def _place(module: str) -> tuple[int, str]:
    """Number of the layer (-1: none) and the rest of the name; further numbers, such as experts, stay in it."""
    found = re.search(r"(?:^|\.)(\d+)\.", module)
    if found is None:
        return -1, module
    return int(found[1]), module[found.end() :]
