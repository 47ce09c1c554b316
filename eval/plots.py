"""Figures of the reports as inline SVG: reliability diagram, risk-coverage curve, entropy against mutual information.

Each function draws one small panel and returns one ``<svg>`` element (:mod:`vlora.eval.svg`), so that a page can lay
panels out freely. No text of the user enters a figure: names belong into the caption beside it, where HTML escaping
applies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlora.eval.svg import COLOURS, PALETTE_SIZE, RC, svg

__all__ = [
    "COLOURS",
    "Curve",
    "PointSet",
    "entropy_scatter",
    "panel",
    "reliability_diagram",
    "risk_coverage",
    "svg",
]

_WIDTH = 3.3  # inches; the page scales panels, so this sets only the size of text relative to the drawing
_MARKERS = ("o", "^", "s", "D")


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        x: Horizontal coordinates.
        y: Vertical coordinates, same length.
        colour: Name of a CSS variable without the dashes: ``ink``, ``muted``, ``grid`` or ``c0`` to ``c9``.
        low: Lower ends of the intervals around ``y``, or empty for none.
        high: Upper ends of the intervals, or empty.
        counts: Items behind each point (the histogram of a reliability diagram), or empty.
        dashed: Whether the line is dashed.
        mark: A point on the line that is set off, or None.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "c0"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    counts: Sequence[int] = ()
    dashed: bool = False
    mark: tuple[float, float] | None = None


@dataclass(frozen=True)
class PointSet:
    """Points of one group in a scatter panel; ``slot`` fixes colour and marker over all panels.

    Attributes:
        x: Horizontal coordinates.
        y: Vertical coordinates, same length.
        slot: Number of the group; the colour is ``slot % 10``, and the marker changes every tenth slot.
        hollow: Draw outlines only (groups without a right answer).
    """

    x: Sequence[float] = field(default_factory=tuple)
    y: Sequence[float] = field(default_factory=tuple)
    slot: int = 0
    hollow: bool = False


def reliability_diagram(curves: Sequence[Curve], *, key: str = "") -> str:
    """Draw accuracy against mean confidence per bin, with bands, above the histogram of confidences.

    Args:
        curves: One per predictor: ``x`` the mean confidence of each bin (not its mid-point), ``y`` its accuracy,
            ``low``/``high`` the interval of the accuracy, ``counts`` the items in the bin.

        key: Anything that tells this panel from an equal one on the same page; it keeps their ids apart.

    Returns:
        One ``<svg>`` element. On the diagonal is right; below it the model is over-confident.
    """
    figure, (axes, below) = panel(height=3.35, ratios=(4.2, 1.0))
    axes.plot([0, 1], [0, 1], color=COLOURS["muted"], lw=0.8, ls=(0, (3, 3)))
    for curve in curves:
        _bins(axes, curve, alone=len(curves) == 1)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="accuracy")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], labels=["0", ".25", ".5", ".75", "1"])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], labels=[""] * 5)
    _histogram(below, curves)
    return svg(figure, key, "reliability diagram", _in_words(curves, "confidence", "accuracy"))


def risk_coverage(
    curves: Sequence[Curve],
    background: Sequence[Curve] = (),
    *,
    top: float = 1.0,
    limit: float | None = None,
    key: str = "",
) -> str:
    """Draw the error rate among the most confident answers against the share of questions answered.

    Args:
        curves: The curves to look at: ``x`` coverage in (0, 1], ``y`` the error rate among the answered, ``mark`` where
            a fitted threshold for "don't know" stands.
        background: Curves drawn thin and grey for comparison.
        top: Upper end of the vertical axis; use one value for all panels of a page.
        limit: Error rate that the thresholds are to keep, as a horizontal line; None draws none.
        key: As for :func:`reliability_diagram`.

    Returns:
        One ``<svg>`` element. Lower is better everywhere.
    """
    figure, (axes,) = panel(height=2.55)
    for curve in background:
        axes.plot(curve.x, curve.y, color=COLOURS["muted"], lw=0.8, alpha=0.4)
    if limit is not None:
        axes.axhline(limit, color=COLOURS["muted"], lw=0.8, ls=(0, (1, 2)))
    for curve in curves:
        _line(axes, curve)
    axes.set(
        xlim=(0, 1.01),
        ylim=(-0.015 * top, top),
        xlabel="coverage (share answered)",
        ylabel="risk (share wrong)",
    )
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], labels=["0", ".25", ".5", ".75", "1"])
    return svg(figure, key, "risk-coverage curves", _in_words(curves, "coverage", "risk"))


def entropy_scatter(
    points: Sequence[PointSet],
    *,
    right: float,
    top: float,
    names: tuple[str, str] = ("predictive entropy", "mutual information"),
    key: str = "",
) -> str:
    """Draw mutual information against predictive entropy, one dot per question, in nats.

    Args:
        points: One set per group.
        right: Right end of the entropy axis; use one value for all panels of a page.
        top: Upper end of the mutual-information axis.
        names: Of the two axes.
        key: As for :func:`reliability_diagram`.

    Returns:
        One ``<svg>`` element. Right is less certain, up means that the posterior draws disagree.
    """
    figure, (axes,) = panel(height=2.75)
    limit = max(min(right, top), 1e-9)
    axes.plot([0, limit], [0, limit], color=COLOURS["muted"], lw=0.7, ls=(0, (3, 3)))
    for group in points:
        colour = COLOURS[f"c{group.slot % PALETTE_SIZE}"]
        marker = _MARKERS[(group.slot // PALETTE_SIZE) % len(_MARKERS)]
        face = "none" if group.hollow else colour
        style: dict[str, Any] = {"ls": "none", "marker": marker, "ms": 3.2, "mew": 0.7, "alpha": 0.6}
        axes.plot(group.x, group.y, color=colour, mfc=face, **style)
    axes.set(xlabel=f"{names[0]} (nats)", ylabel=f"{names[1]} (nats)")
    axes.set(xlim=(-0.02 * right, 1.03 * right), ylim=(-0.03 * top, 1.05 * top))
    return svg(figure, key, f"{names[1]} against {names[0]}", _sets_in_words(points, names))


def panel(height: float, ratios: Sequence[float] = (1.0,)) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of the common width with stacked, plainly styled axes."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(_WIDTH, height))
        # Fixed margins: labels have known sizes here, and matplotlib's own layout costs more than all drawing.
        margins = {"left": 0.155, "right": 0.985, "bottom": 0.40 / height, "top": 1 - 0.05 / height}
        grid = figure.add_gridspec(len(ratios), 1, height_ratios=list(ratios), hspace=0.14, **margins)
        stacked = [figure.add_subplot(grid[i]) for i in range(len(ratios))]
    for axes in stacked:
        axes.set_axisbelow(True)
        axes.set_facecolor("none")
        axes.grid(True, color=COLOURS["grid"], lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(COLOURS["muted"])
        axes.tick_params(colors=COLOURS["muted"], labelcolor=COLOURS["ink"], length=2.5)
        axes.yaxis.set_label_coords(-0.135, 0.5)
        axes.xaxis.label.set_color(COLOURS["ink"])
        axes.yaxis.label.set_color(COLOURS["ink"])
    return figure, stacked


def _line(axes: Axes, curve: Curve) -> None:
    """Add one curve."""
    style = (0, (4, 2)) if curve.dashed else "-"
    axes.plot(curve.x, curve.y, color=COLOURS[curve.colour], lw=1.4, ls=style)
    if curve.mark is not None:
        at, height = curve.mark
        style = {"ls": "none", "marker": "D", "ms": 5.5, "mfc": "none", "mew": 1.4, "clip_on": False}
        axes.plot([at], [height], color=COLOURS[curve.colour], zorder=4, **style)


def _bins(axes: Axes, curve: Curve, *, alone: bool) -> None:
    """Add the bins of a reliability diagram: dots by number of items, interval bars, a band if nothing overlaps."""
    colour = COLOURS[curve.colour]
    if len(curve.low) == len(curve.x) == len(curve.high) and len(curve.x) > 0:
        if alone:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, lw=0)
        axes.vlines(curve.x, curve.low, curve.high, color=colour, alpha=0.5, lw=0.9)
    axes.plot(curve.x, curve.y, color=colour, lw=0.9, alpha=0.6)
    most = max(curve.counts, default=0)
    area = [6 + 22 * n / most for n in curve.counts] if most else [12.0] * len(curve.x)
    axes.scatter(curve.x, curve.y, s=area, color=colour, lw=0, zorder=3)


def _histogram(axes: Axes, curves: Sequence[Curve]) -> None:
    """Add bars of the share of items per bin, the curves side by side."""
    width = 0.036 / max(len(curves), 1)
    for index, curve in enumerate(curves):
        total = sum(curve.counts)
        if not total:
            continue
        offset = (index - (len(curves) - 1) / 2) * width
        share = [count / total for count in curve.counts]
        axes.bar([x + offset for x in curve.x], share, width=width, color=COLOURS[curve.colour], alpha=0.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(0, 1), xlabel="confidence", ylabel="share")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], labels=["0", ".25", ".5", ".75", "1"])
    axes.set_yticks([0, 1.0], labels=["0", "1"])


def _in_words(curves: Sequence[Curve], across: str, up: str) -> str:
    """What curves show, in the order of the legend: up to 15 of their points, and what is set off."""
    told = []
    for number, curve in enumerate(curves, start=1):
        count = len(curve.x)
        chosen = sorted({round(i * (count - 1) / 14) for i in range(15)}) if count else []
        points = ", ".join(f"{curve.y[i]:.2f} at {curve.x[i]:.2f}" for i in chosen)
        mark = f"; threshold: {curve.mark[1]:.2f} at {curve.mark[0]:.2f}" if curve.mark else ""
        told.append(f"Line {number}, {up} at {across}: {points or 'no point'}{mark}.")
    return " ".join(told)


def _sets_in_words(points: Sequence[PointSet], names: tuple[str, str]) -> str:
    """Number and means of the points of every group, in the order of the legend."""
    told = []
    for number, group in enumerate(points, start=1):
        if len(group.x):
            means = [sum(values) / len(values) for values in (group.x, group.y)]
            means_told = ", ".join(f"mean {name} {mean:.2f}" for name, mean in zip(names, means, strict=True))
            told.append(f"Group {number}: {len(group.x)} questions, {means_told}.")
    return " ".join(told)
