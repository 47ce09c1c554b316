"""Figures of the report as inline SVG: reliability diagram, risk-coverage curve, entropy against mutual information.

Each function draws one small panel and returns one ``<svg>`` element, so that a page can lay panels out freely.
Matplotlib's object-oriented API and its SVG backend are used, never ``pyplot``: no global figure, no display.
Three properties are added afterwards:

* colours are CSS variables (``--ink``, ``--c0`` ...), so one figure serves light mode, dark mode and print;
* no element holds an external reference (namespaces, metadata and document type are removed);
* the same input gives the same bytes (fixed hash salt, no date), and ids do not clash between panels.

No text of the user enters a figure: names belong into the caption beside it, where HTML escaping applies.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

_NAMED = {"ink": "#fe0100", "muted": "#fe0200", "grid": "#fe0300", "paper": "#fe0400"}
PALETTE_SIZE = 10
COLOURS = _NAMED | {f"c{i}": f"#fe10{i:02x}" for i in range(PALETTE_SIZE)}
_WIDTH = 3.3  # inches; the page scales panels, so this sets only the size of text relative to the drawing
_MARKERS = ("o", "^", "s", "D")
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vlora",
    "path.simplify": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.usetex": False,
    "axes.unicode_minus": True,
}


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
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str = "c0"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    counts: Sequence[int] = ()
    dashed: bool = False


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
    return svg(figure, key, "reliability diagram")


def risk_coverage(
    curves: Sequence[Curve], background: Sequence[Curve] = (), *, top: float = 1.0, key: str = ""
) -> str:
    """Draw the error rate among the most confident answers against the share of questions answered.

    Args:
        curves: The curves to look at: ``x`` coverage in (0, 1], ``y`` the error rate among the answered.
        background: Curves drawn thin and grey for comparison.
        top: Upper end of the vertical axis; use one value for all panels of a page.
        key: As for :func:`reliability_diagram`.

    Returns:
        One ``<svg>`` element. Lower is better everywhere.
    """
    figure, (axes,) = panel(height=2.55)
    for curve in background:
        axes.plot(curve.x, curve.y, color=COLOURS["muted"], lw=0.8, alpha=0.4)
    for curve in curves:
        _line(axes, curve)
    axes.set(
        xlim=(0, 1.01),
        ylim=(-0.015 * top, top),
        xlabel="coverage (share answered)",
        ylabel="risk (share wrong)",
    )
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], labels=["0", ".25", ".5", ".75", "1"])
    return svg(figure, key, "risk-coverage curves")


def entropy_scatter(points: Sequence[PointSet], *, right: float, top: float, key: str = "") -> str:
    """Draw mutual information against predictive entropy, one dot per question, in nats.

    Args:
        points: One set per group.
        right: Right end of the entropy axis; use one value for all panels of a page.
        top: Upper end of the mutual-information axis.
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
    axes.set(xlabel="predictive entropy (nats)", ylabel="mutual information (nats)")
    axes.set(xlim=(-0.02 * right, 1.03 * right), ylim=(-0.03 * top, 1.05 * top))
    return svg(figure, key, "entropy against mutual information")


def panel(height: float, ratios: Sequence[float] = (1.0,)) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of the common width with stacked, plainly styled axes."""
    with matplotlib.rc_context(_RC):
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


def svg(figure: Figure, key: str, name: str) -> str:
    """Return the figure as one self-contained ``<svg>`` element coloured by CSS variables and named for readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"|\sversion="1.1"', "", text).replace("xlink:href", "href")
    opened = rf'<svg class="plot" role="img" aria-label="{name}" viewBox="\1">'
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', opened, text, count=1)
    text = re.sub(r"font(-family|-size)?: [^;\"]*'[^\"]*\"|font-size: [^\"]*\"", _font_size_only, text)
    return _colours_to_variables(_own_ids(_compact(text), key)).strip()


def _font_size_only(match: re.Match[str]) -> str:
    """Keep size and anchor of a text style; the family is the page's own."""
    style = match.group(0)
    size = re.search(r"(\d+(?:\.\d+)?)px", style)
    anchor = re.search(r"text-anchor: (\w+)", style)
    kept = [f"font-size: {size.group(1)}px"] if size else []
    kept += [f"text-anchor: {anchor.group(1)}"] if anchor else []
    return "; ".join(kept) + '"'


def _compact(text: str) -> str:
    """Drop comments, unused ids, invisible paths and digits; hoist the style that repeated markers share."""
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>\s*', "", text)
    text = re.sub(r"(?<=[\s\"(\-])(\d{2,}\.\d|\d\.\d{2})\d+", r"\1", text)
    text = re.sub(r"<g>\s*(<defs>\s*</defs>\s*)?</g>\s*", "", text)
    text = re.sub(
        r'<g([^>]*)>\s*((?:<use [^>]*?style="([^"]*)"\s*/>\s*){2,})</g>',
        lambda m: f'<g{m[1]} style="{m[3]}">' + re.sub(r'\s*style="[^"]*"\s*/>', "/>", m[2]) + "</g>",
        text,
    )
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", ">\n<")


def _own_ids(text: str, key: str) -> str:
    """Rename ids after a hash of the key and the drawing, so that panels on one page do not refer to each other."""
    prefix = hashlib.sha256((key + text).encode()).hexdigest()[:6]
    for number, name in enumerate(dict.fromkeys(re.findall(r'\sid="([^"]*)"', text))):
        new = f"v{prefix}-{number}"
        text = text.replace(f'id="{name}"', f'id="{new}"').replace(f"#{name}", f"#{new}")
    return text


def _colours_to_variables(text: str) -> str:
    """Replace the placeholder colours by the CSS variables they stand for."""
    names: Mapping[str, str] = {code: name for name, code in COLOURS.items()}
    return re.sub(r"#fe[0-9a-f]{4}", lambda m: f"var(--{names[m[0]]})" if m[0] in names else m[0], text)
