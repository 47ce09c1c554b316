"""Captioned panels of figures, one a model, from the numbers that ``results.json`` keeps of them.

Small multiples share their axes, so panels can be compared by eye; a legend stands once above the panels. At most
``MAX_POINTS`` dots are drawn per scatter panel, taken at even distances from each group so that nothing is random.
What the lines of a panel are called and how they are coloured is a :class:`Look`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlora.eval.plots import (
    PALETTE_SIZE,
    Curve,
    PointSet,
    entropy_scatter,
    reliability_diagram,
    risk_coverage,
)

__all__ = ["MAX_POINTS", "Block", "Entries", "Look", "entropy_block", "reliability_block", "risk_block"]

MAX_POINTS = 600
_CURVE_STEPS = 160

Entries = Sequence[Mapping[str, Any]]
Block = dict[str, Any]
"""``legend`` and ``panels`` of (caption, detail, svg)."""
Detail = Callable[[str, Entries], str]
"""A model and its entries -> the small line under its caption."""


@dataclass(frozen=True)
class Look:
    """The lines of a panel.

    Attributes:
        key: Of an entry, under which the name of its line stands.
        colours: Name -> CSS variable without the dashes; others are ``c2``.
        labels: Name -> what the reader sees; others as they are.
    """

    key: str
    colours: Mapping[str, str]
    labels: Mapping[str, str]

    def colour(self, entry: Mapping[str, Any]) -> str:
        """Colour of an entry's line."""
        return self.colours.get(entry[self.key], "c2")

    def legend(self, entries: Entries) -> list[dict[str, Any]]:
        """Legend of the lines that occur."""
        found = dict.fromkeys(entry[self.key] for entry in entries)
        return [
            {"colour": self.colours.get(name, "c2"), "label": self.labels.get(name, name), "hollow": False}
            for name in found
        ]


def reliability_block(models: Sequence[str], entries: Entries, look: Look, detail: Detail) -> Block:
    """One reliability panel per model with all of its entries: ``bins`` with confidence, accuracy, interval and n."""
    panels = []
    for model, own in _by_model(models, entries):
        curves = [_bins_to_curve(entry, look) for entry in own]
        key = "|".join([model, *(entry[look.key] for entry in own)])
        if any(len(curve.x) for curve in curves):
            drawn = reliability_diagram(curves, key=key)
            panels.append({"caption": model, "detail": detail(model, own), "svg": drawn})
    return {"legend": look.legend(entries), "panels": panels}


def risk_block(
    models: Sequence[str], entries: Entries, look: Look, detail: Detail, *, limit: float | None = None
) -> Block:
    """One risk-coverage panel per model, the other models' last lines behind it in grey.

    Args:
        models: In the order of the page.
        entries: ``coverage`` and ``risk``; a ``threshold`` with these two keys is marked where there is one.
        look: Of the lines.
        detail: Of the captions.
        limit: Error rate that the thresholds are to keep; drawn where a threshold is.
    """
    risks = [
        r for entry in entries for c, r in zip(entry["coverage"], entry["risk"], strict=True) if c >= 0.05
    ]
    top = min(1.0, 1.08 * max(risks, default=1.0) + 0.01)
    marked = any(_mark(entry) for entry in entries)
    panels, grouped = [], _by_model(models, entries)
    for model, own in grouped:
        behind = [_risk_curve(others[-1], look, steps=60) for name, others in grouped if name != model]
        curves = [_risk_curve(entry, look) for entry in own]
        drawn = risk_coverage(curves, behind, top=top, limit=limit if marked else None, key=model)
        panels.append({"caption": model, "detail": detail(model, own), "svg": drawn})
    legend = look.legend(entries)
    if len(panels) > 1:
        legend.append({"colour": "muted", "label": "the other models", "hollow": False})
    return {"legend": legend, "panels": panels}


def entropy_block(
    models: Sequence[str],
    entries: Entries,
    groups: Sequence[str],
    hollow: Sequence[str],
    names: tuple[str, str] = ("predictive entropy", "mutual information"),
) -> Block:
    """One scatter panel per model, coloured by group, all on the same axes.

    Args:
        models: In the order of the page.
        entries: ``entropy`` and ``mutual_information`` of a ``group``.
        groups: In the order of the legend; further ones follow.
        hollow: Groups drawn as outlines.
        names: Of the two axes.
    """
    order = dict.fromkeys([*groups, *(entry["group"] for entry in entries)])
    slots = {group: slot for slot, group in enumerate(order)}
    right, top = (_largest(entries, key) for key in ("entropy", "mutual_information"))
    panels = []
    for model, own in _by_model(models, entries):
        room = max(MAX_POINTS // max(len(own), 1), 1)
        points = [_points(e, slots[e["group"]], room, hollow=e["group"] in hollow) for e in own]
        drawn = entropy_scatter(points, right=right, top=top, names=names, key=model)
        panels.append({"caption": model, "detail": "", "svg": drawn})
    used = {entry["group"] for entry in entries}
    legend = [
        {"colour": f"c{slots[group] % PALETTE_SIZE}", "label": group, "hollow": group in hollow}
        for group in order
        if group in used
    ]
    return {"legend": legend, "panels": panels}


def _by_model(models: Sequence[str], entries: Entries) -> list[tuple[str, Entries]]:
    """Entries of each model that has any, in the report's order of models."""
    grouped = [(model, [entry for entry in entries if entry["model"] == model]) for model in models]
    return [(model, own) for model, own in grouped if own]


def _bins_to_curve(entry: Mapping[str, Any], look: Look) -> Curve:
    """Occupied bins of a reliability entry as a curve with its band."""
    bins = [one for one in entry["bins"] if one.get("n") and _is_number(one.get("confidence"))]
    full = all(_is_number(one.get(end)) for one in bins for end in ("low", "high"))
    return Curve(
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        colour=look.colour(entry),
        low=[one["low"] for one in bins] if full else (),
        high=[one["high"] for one in bins] if full else (),
        counts=[one["n"] for one in bins],
    )


def _risk_curve(entry: Mapping[str, Any], look: Look, steps: int = _CURVE_STEPS) -> Curve:
    """A risk-coverage entry as a curve of at most ``steps`` points, both ends kept."""
    x, y = _thin(entry["coverage"], steps), _thin(entry["risk"], steps)
    return Curve(x, y, colour=look.colour(entry), mark=_mark(entry))


def _mark(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Where the threshold of an entry stands; None without one, and for one that answers nothing."""
    found = entry.get("threshold")
    if not found or not _is_number(found.get("risk")):
        return None
    return found["coverage"], found["risk"]


def _points(entry: Mapping[str, Any], slot: int, room: int, *, hollow: bool) -> PointSet:
    """At most ``room`` drawable points of one group."""
    pairs = zip(entry["entropy"], entry["mutual_information"], strict=True)
    kept = _thin([pair for pair in pairs if all(_is_number(value) for value in pair)], room)
    return PointSet([pair[0] for pair in kept], [pair[1] for pair in kept], slot=slot, hollow=hollow)


def _largest(entries: Entries, key: str) -> float:
    """The largest finite value of a column over all entries, at least 0.05 so that axes have a length."""
    return max([0.05, *(value for entry in entries for value in entry[key] if _is_number(value))])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _thin(values: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` elements at even distances, first and last included."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / max(most - 1, 1)
    return [values[round(i * step)] for i in range(most)]
