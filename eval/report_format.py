"""How a number of ``results.json`` is written in the report: name, direction, digits, interval.

The table ``METRICS`` is the only place that knows how a metric is presented; a metric that is not in it is shown
under its own key, without a direction. Missing numbers (None, NaN) become an en dash, never a zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = [
    "DASH",
    "METRICS",
    "Cell",
    "Metric",
    "amount",
    "cell",
    "difference_cell",
    "duration",
    "interval",
    "metric",
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
}
_SCORES = {
    "max_probability": "max probability",
    "entropy": "entropy",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
    "length": "length only",
}


@dataclass(frozen=True)
class Metric:
    """Presentation of one metric.

    Attributes:
        key: Name in ``results.json``.
        label: Column head.
        direction: +1 higher is better, -1 lower is better, 0 neither.
        digits: Decimals shown.
        percent: Show a share as a percentage.
        hint: What it is, in one phrase.
    """

    key: str
    label: str
    direction: int = 0
    digits: int = 3
    percent: bool = False
    hint: str = ""

    @property
    def arrow(self) -> str:
        """Arrow in the better direction, or nothing."""
        return {1: "↑", -1: "↓"}.get(self.direction, "")


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


METRICS = {
    m.key: m
    for m in (
        Metric("accuracy", "Accuracy", 1, 1, True, "share of questions answered correctly"),
        Metric("perplexity", "Perplexity", -1, 2, False, "exp of the mean negative log-likelihood per token"),
        Metric("nll", "NLL", -1, 3, False, "mean negative log-probability of the right answer, in nats"),
        Metric(
            "nll_sequence", "NLL of texts", -1, 3, False, "nats per token, one posterior draw per whole text"
        ),
        Metric(
            "kl_to_truth", "KL to truth", -1, 3, False, "divergence from the known distribution of answers"
        ),
        Metric(
            "brier", "Brier", -1, 3, False, "squared error of the probabilities, summed over choices, 0 to 2"
        ),
        Metric("ece_15_equal_width", "ECE", -1, 3, False, "calibration error, 15 bins of equal width"),
        Metric(
            "ece_15_equal_mass", "ECE, equal mass", -1, 3, False, "calibration error, 15 bins of equal count"
        ),
        Metric(
            "auroc_correctness", "AUROC", 1, 3, False, "chance that a right answer is the more confident one"
        ),
        Metric("aurc", "AURC", -1, 3, False, "mean error rate over all coverages"),
        Metric("excess_aurc", "Excess AURC", -1, 3, False, "AURC above that of a perfect ordering"),
        Metric(
            "accuracy_at_80_coverage",
            "Acc. at 80\N{NO-BREAK SPACE}%",
            1,
            1,
            True,
            "accuracy on the most confident 80 %",
        ),
        Metric("calibration_gap", "Calibration gap", 0, 3, False, "mean confidence minus accuracy"),
        Metric("mean_confidence", "Mean confidence", 0, 1, True, "mean probability of the chosen answer"),
        Metric(
            "confident_share", "Confident answers", 0, 1, True, "share of answers with probability above 0.5"
        ),
        Metric("entropy", "Entropy", 0, 3, False, "predictive entropy in nats"),
        Metric("expected_entropy", "Expected entropy", 0, 3, False, "aleatoric part of the entropy, in nats"),
        Metric(
            "mutual_information", "Mutual information", 0, 3, False, "epistemic part of the entropy, in nats"
        ),
        Metric("temperature", "Temperature", 0, 2, False, "fitted on the validation split"),
    )
}


def metric(key: str) -> Metric:
    """Return the presentation of ``key``; an unknown metric is shown under its key."""
    return METRICS.get(key) or Metric(key, key.replace("_", " "))


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
