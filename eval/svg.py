"""A drawing as one ``<svg>`` element that stands in a page by itself.

Matplotlib's object-oriented API and its SVG backend are used, never ``pyplot``: no global figure, no display.
Three properties are added afterwards:

* colours are CSS variables (``--ink``, ``--c0`` ...), so one figure serves light mode, dark mode and print;
* no element holds an external reference (namespaces, metadata and document type are removed);
* the same input gives the same bytes (fixed hash salt, no date), and ids do not clash between panels.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = ["COLOURS", "PALETTE_SIZE", "RC", "svg"]

_NAMED = {"ink": "#fe0100", "muted": "#fe0200", "grid": "#fe0300", "paper": "#fe0400"}
PALETTE_SIZE = 10
COLOURS = _NAMED | {f"c{i}": f"#fe10{i:02x}" for i in range(PALETTE_SIZE)}
RC: dict[Any, Any] = {
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
"""Settings of matplotlib under which every figure is drawn."""


def svg(figure: Figure, key: str, name: str, words: str = "") -> str:
    """Return the figure as one self-contained ``<svg>`` element coloured by CSS variables.

    Args:
        figure: The drawing.
        key: Anything that tells this panel from an equal one on the same page; it keeps their ids apart.
        name: What it is, for screen readers and on hover.
        words: What it shows, for screen readers; without text of the user.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"|\sversion="1.1"', "", text).replace("xlink:href", "href")
    opened = rf'<svg class="plot" role="img" aria-label="{name}" viewBox="\1">'
    text = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', opened, text, count=1)
    told = f"<title>{name}</title>\n" + (f"<desc>{words}</desc>\n" if words else "")
    text = re.sub(r"(<svg[^>]*>)", lambda opening: opening[1] + "\n" + told, text, count=1)
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
