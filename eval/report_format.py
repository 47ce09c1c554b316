"""How a number of ``results.json`` is written in the report: name, direction, digits, interval.

How each metric is presented stands in :mod:`vlora.eval.metric_names`. Missing numbers (None, NaN) become an en dash,
never a zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from vlora.eval.metric_names import Metric

__all__ = [
    "DASH",
    "LENGTHS",
    "Cell",
    "amount",
    "cell",
    "difference_cell",
    "duration",
    "interval",
    "moment",
    "number",
    "predictor_label",
    "score_label",
    "value_of",
]

DASH = "\N{EN DASH}"
_PREDICTORS = {
    "mean": "mean",
    "samples": "samples",
    "mean+temperature": "mean + temperature",
    "samples+temperature": "samples + temperature",
    "samples+draw_temperature": "tempered samples",
}
_SCORES = {
    "max_probability": "max probability",
    "entropy": "entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
    "reverse_mutual_information": "reverse mutual information",
    "expected_pairwise_kl": "divergence between draws",
    "entropy_times_base": "entropy × entropy of the base",
    "mutual_information_times_base": "mutual information × entropy of the base",
    "logit_variance": "variance of the logits",
    "share_left": "share of the prior variance left",
    "variation_ratio": "variation ratio",
    "feature_distance": "distance of the hidden state",
    "relative_feature_distance": "relative distance of the hidden state",
    "length": "length only",
    "answer_length": "answer length only",
    "nll": "NLL per token",
    "nll_sequence": "NLL of whole texts",
}
LENGTHS = ("length", "answer_length")
"""Scores that know nothing of the model."""


@dataclass(frozen=True)
class Cell:
    """One table cell: a number, its interval in small type, a remark, and how it is tinted.

    Attributes:
        text: The number.
        interval: ``[low, high]`` or empty.
        note: Further small line, or empty.
        best: Whether paired comparisons show it to be the best of its column.
        shade: Strength of the background tint in [0, 1], or None for no tint.
        tone: ``good`` (more is better), ``risk`` (less is better) or ``plain``.
        title: Text shown on hover, or empty.
    """

    text: str = DASH
    interval: str = ""
    note: str = ""
    best: bool = False
    shade: float | None = None
    tone: str = "plain"
    title: str = ""


def predictor_label(predictor: str) -> str:
    """Return the reader's name of a predictor."""
    return _PREDICTORS.get(predictor, predictor)


def score_label(score: str) -> str:
    """Return the reader's name of a detection score."""
    return _SCORES.get(score, score.replace("_", " "))


def value_of(entry: Any, field: str = "value") -> float | None:
    """Return a finite number out of ``{"value", "low", "high", "n"}``, of a plain number, or None."""
    raw = entry.get(field) if isinstance(entry, Mapping) else entry if field == "value" else None
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        return None
    return float(raw)


def number(value: float | None, digits: int = 3, percent: bool = False) -> str:
    """Format one number; None becomes an en dash, a negative sign a true minus."""
    if value is None:
        return DASH
    text = f"{100 * value:.{digits}f}" if percent else f"{value:.{digits}f}"
    if text.startswith("-") and not float(text):
        text = text[1:]
    return text.replace("-", "\N{MINUS SIGN}") + ("\N{NARROW NO-BREAK SPACE}%" if percent else "")


def interval(entry: Any, digits: int = 3, percent: bool = False) -> str:
    """Format ``[low, high]`` of an entry, or nothing where it has none."""
    low, high = value_of(entry, "low"), value_of(entry, "high")
    if low is None or high is None:
        return ""
    low_text, high_text = (
        number(v, digits, percent).removesuffix("\N{NARROW NO-BREAK SPACE}%") for v in (low, high)
    )
    return f"[{low_text}, {high_text}]"


def cell(entry: Any, of: Metric, **style: Any) -> Cell:
    """Return the cell of one entry of ``results.json`` in the manner of its metric.

    A mean over items of which some are infinite is shown as infinite, with their number, never as the mean of the rest.
    """
    infinite = value_of(entry, "infinite")
    if infinite:
        note = (
            f"{int(infinite)} infinite, rest {number(value_of(entry, 'finite_mean'), of.digits, of.percent)}"
        )
        return Cell("\N{INFINITY}", **{**style, "note": note})
    return Cell(
        number(value_of(entry), of.digits, of.percent), interval(entry, of.digits, of.percent), **style
    )


def difference_cell(entry: Any, of: Metric) -> Cell:
    """Return the cell of a difference: always with its sign, shares in percentage points."""
    shown, value = cell(entry, of), value_of(entry)
    text = shown.text.replace("\N{NARROW NO-BREAK SPACE}%", "\N{NARROW NO-BREAK SPACE}pp")
    return replace(shown, text=f"+{text}" if value is not None and value > 0 else text)


def moment(created: Any) -> str:
    """Return an ISO time stamp as a reader likes it; what is no time stamp stays as it is."""
    try:
        return datetime.fromisoformat(str(created)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(created or "")


def duration(seconds: float) -> str:
    """Format seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def amount(key: str, value: Any) -> str:
    """Format one entry of ``cost``: the unit is read from the ending of its key."""
    plain = value_of(value)
    if plain is None:
        return DASH if value is None or isinstance(value, float) else str(value)
    if key.endswith("seconds"):
        return duration(plain)
    if key.endswith("bytes"):
        return f"{plain / 2**30:.2f} GiB" if plain >= 2**30 else f"{plain / 2**20:.0f} MiB"
    return (
        f"{int(plain):,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if plain == int(plain) else f"{plain:.3g}"
    )
