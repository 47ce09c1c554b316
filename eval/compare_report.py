"""A comparison as one self-contained HTML page, in the dress of the evaluation's report."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlora.eval.compare_detection import score_sides
from vlora.eval.metric_names import ANSWER_CONFIDENCE, Metric, metric
from vlora.eval.report import environment, style_sheet
from vlora.eval.report_format import (
    DASH,
    difference_cell,
    moment,
    number,
    predictor_label,
    score_label,
    value_of,
)
from vlora.files import atomic_write

__all__ = ["items_of", "metric_of", "render_comparison", "resamples_remark", "verdict", "write_comparison"]


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Render what :func:`vlora.eval.compare.compare_runs` returns.

    Returns:
        The page; it holds no external reference and no script.
    """
    view = {
        "css": Markup(style_sheet()),
        "level": comparison["level"],
        "family": comparison["family"],
        "num_bootstrap": comparison["num_bootstrap"],
        "created": moment(comparison["created"]),
        "runs": comparison["runs"],
        "pairs": [_pair(pair) for pair in comparison["pairs"]],
        "findings": _findings(comparison),
        "remark": resamples_remark(comparison),
    }
    return environment().get_template("compare.html.j2").render(view).rstrip() + "\n"


def write_comparison(comparison: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    return atomic_write(path, render_comparison(comparison))


def resamples_remark(comparison: Mapping[str, Any]) -> str:
    """What to do where a p-value from resamples cannot be small enough for so many tests; empty where it can.

    A bootstrap of B resamples gives no p-value below 2 / (B + 1), and Holm's first step multiplies it by the tests.
    """
    needed = math.ceil(2 * comparison["family"] / comparison["level"]) - 1
    if comparison["num_bootstrap"] >= needed:
        return ""
    return (
        f"No bootstrap of {comparison['num_bootstrap']} resamples can show a difference among {comparison['family']} "
        f"tests: take at least {needed} (--num-bootstrap), or fewer tests."
    )


def metric_of(test: Mapping[str, Any]) -> Metric:
    """The presentation of a test's metric; its direction is in the test."""
    key, without = test["metric"], test.get("stand_in")
    remark = f" (without draws: {next(iter(without.values())).replace('_', ' ')})" if without else ""
    if key.startswith("auroc ") and ": " in key:
        score, _, question = key.removeprefix("auroc ").partition(": ")
        names = " against ".join(dict.fromkeys(score_label(side) for side in score_sides(score)))
        return Metric(key, f"AUROC of {names}", 1, 3, False, question + remark)
    name, _, confidence = key.partition(" ")
    if not confidence:
        return metric(key)
    of, shown = metric(ANSWER_CONFIDENCE.get(name) or name), confidence.replace("_", " ").replace("+", " + ")
    return replace(of, key=key, label=f"{of.label}, {shown}", hint=of.hint + remark)


def verdict(test: Mapping[str, Any]) -> str:
    """What a test says, in words."""
    if test["p"] is None:
        return "not defined"
    return f"{test['better']} is better" if test["better"] else "no difference shown"


def predictor_of(pair: Mapping[str, Any], side: str) -> str:
    """The predictor of one side, in words; where it stands in for the one that was asked for, that too."""
    used, wanted = pair[f"predictor_{side}"], pair.get("wanted")
    return predictor_label(used) + (f" (no {predictor_label(wanted)})" if wanted and used != wanted else "")


def items_of(pair: Mapping[str, Any]) -> str:
    """How many items a pair is compared on, and how many answers among them could not be graded."""
    if "ungraded" not in pair:
        return f"{pair['n']} items"
    left = f", {pair['ungraded']} of them not graded in one of the two" if pair["ungraded"] else ""
    return f"{pair['n']} questions{left}, threshold t = {pair['threshold']:g}"


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return one pair as the template shows it."""
    sides = {f"predictor_{side}": predictor_of(pair, side) for side in "ab"}
    draws = pair["draws"]
    words = "" if not (draws.get("a") or draws.get("b")) else f"{draws['a']} and {draws['b']} draws"
    words += ", paired" if draws["paired"] else ""
    rows = [_row(test, pair) for test in pair["tests"]]
    shared = {key: pair[key] for key in ("task", "a", "b", "n")}
    over = "items and draws" if any(test["draw_error"] for test in pair["tests"]) else "items"
    return {**shared, **sides, "draws": words, "rows": rows, "items": items_of(pair), "over": over}


def _row(test: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return one test; the bar's places are percentages of the cell, 50 being no difference."""
    of = metric_of(test)
    difference = {"value": test["difference"], "low": test["low"], "high": test["high"]}
    ends = [value_of(difference, end) for end in ("value", "low", "high")]
    reach = max([abs(end) for end in ends if end is not None], default=0.0) or 1.0
    value, low, high = (0.0 if end is None else end for end in ends)
    state = "open" if test["better"] is None else "better" if test["better"] == pair["a"] else "worse"
    return {
        "metric": of,
        "test": test["test"],
        "values": [number(value_of(test[side]), of.digits, of.percent) for side in "ba"],
        "cell": difference_cell(difference, of),
        "state": state,
        **{key: round(50 + 46 * v / reach, 2) for key, v in (("at", value), ("left", low), ("right", high))},
        "p": _p(test["p"]),
        "p_holm": _p(test["p_holm"]),
        "verdict": verdict(test),
        "items": _needed(test["items_needed"]),
        "draws": _needed(test["draws_needed"]),
    }


def _p(value: float | None) -> str:
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else number(value)


def _needed(value: int | None) -> str:
    return DASH if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _findings(comparison: Mapping[str, Any]) -> list[str]:
    """One sentence per difference that was shown, or that there is none."""
    found = []
    for pair in comparison["pairs"]:
        for test in pair["tests"]:
            if test["better"]:
                task = f"{pair['task']}: " if pair["task"] else ""
                loser = pair["b"] if test["better"] == pair["a"] else pair["a"]
                of = metric_of(test)
                name = f"{of.label} ({of.hint})" if test["metric"].startswith("auroc ") else of.label
                found.append(
                    f"{task}{test['better']} is better than {loser} in {name} (adjusted p {_p(test['p_holm'])})."
                )
    return found or [
        f"No difference is shown at the level {comparison['level']:g}, over {comparison['family']} tests."
    ]
