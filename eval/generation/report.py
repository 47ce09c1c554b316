"""``report.html`` of an evaluation of answers: one self-contained page, no script, no network.

Drawn from ``results.json`` alone, in the style of the other report. Text from data is escaped.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlora.eval.baselines import absent_notes
from vlora.eval.generation.columns import ALL
from vlora.eval.generation.costs import NEEDED_BY
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.generation.report_figures import (
    figure_blocks,
    hollow_groups,
    mistake_blocks,
    promised,
    threshold_table,
)
from vlora.eval.item_warnings import item_notes
from vlora.eval.report_format import moment
from vlora.files import atomic_write

__all__ = ["render_answer_report", "write_answer_report"]

_ANSWERS = {
    "correct": "right",
    "not_attempted": "declined",
    "accuracy_given_attempted": "right among attempts",
    "f_score": "F",
    "penalised_score": "penalised score",
}
_FAMILIES = {
    "baseline": "Baselines",
    "answer": "From the answer alone",
    "samples": "From several answers",
    "posterior": "From posterior draws",
}
_BASELINES = ("max_probability", "mean_token_entropy", "answer_length")
_CONFIDENCE = ("brier", "ece_15_equal_width", "answered", "penalised_score")

Results = Mapping[str, Any]


def write_answer_report(results: Results, path: str | Path) -> Path:
    """Write the report, all or nothing.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    return atomic_write(path, render_answer_report(results))


def render_answer_report(results: Results) -> str:
    """Render results as one HTML page.

    Args:
        results: Content of a ``results.json`` of kind ``generation``.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("vlora.eval.generation", "."), PackageLoader("vlora.eval", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = [str(model["name"]) for model in results["models"]]
    style = (resources.files("vlora.eval") / "report.css").read_text(encoding="utf-8")
    answers = results["answers"]
    return environment.get_template("answers.html.j2").render(
        title=f"How far can the answers be trusted: {_task_name(results)}",
        subtitle=_subtitle(results),
        css=Markup(style),
        threshold=results["settings"]["threshold"],
        ungraded=sum(row["ungraded"] for row in answers if row["group"] == ALL),
        failures=sum(row["judge_failures"] for row in answers if row["group"] == ALL),
        headline=_headline(results, models),
        notes=item_notes(results, "generation") + absent_notes(results),
        answers=_answers(results, models),
        drawn=_has_draws(results),
        estimators=_estimators(results, models),
        detection=_detection(results, models),
        confidences=_confidences(results, models),
        thresholds=threshold_table(results, models),
        promised=f"{100 * (promised(results) or 0):g} %",
        questions=_questions(results),
        figures=figure_blocks(results, models),
        hollow=hollow_groups(results),
        mistakes=mistake_blocks(results, models),
        facts=_facts(results),
        costs=_costs(results, models),
        settings=yaml.safe_dump(results["settings"], sort_keys=False, allow_unicode=True, width=100),
    )


def _subtitle(results: Results) -> str:
    drawn = f"{results['num_samples']} {'antithetic ' if results['antithetic'] else ''}posterior draws"
    words = f"meanings by {results['clusters_by'].replace('_', ' ')}"
    return f"{drawn}, {results['num_answers']} answers each · {words} · {moment(results['created'])}"


def _cell(measured: Any, *, shade: bool = False, extra: str = "", digits: int = 3) -> dict[str, Any]:
    """One number with its interval; shaded from chance (.5) to 1 where asked."""
    if not measured or measured["value"] is None:
        return {"text": "–", "interval": "", "shade": None}
    value, low, high = measured["value"], measured["low"], measured["high"]
    interval = "" if low is None else f"[{_number(low, digits)}, {_number(high, digits)}]"
    if measured.get("crossed_low") is not None:
        ends = (_number(measured[f"crossed_{end}"], digits) for end in ("low", "high"))
        interval += f" with draws [{', '.join(ends)}]"
    depth = min(max(2 * value - 1, 0.0), 1.0) if shade else None
    return {"text": _number(value, digits) + extra, "interval": interval, "shade": depth}


def _number(value: float, digits: int) -> str:
    """A number with a true minus, and none before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _row(name: str, cells: Sequence[dict[str, Any]], note: str = "") -> dict[str, Any]:
    return {"name": name, "note": note, "cells": list(cells)}


def _find(rows: Sequence[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any]:
    """The row that has these values, or an empty one."""
    return next((row for row in rows if all(row[k] == v for k, v in wanted.items())), {})


def _answers(results: Results, models: Sequence[str]) -> dict[str, Any]:
    blocks = []
    for group in dict.fromkeys(row["group"] for row in results["answers"]):
        found = {model: _find(results["answers"], model=model, group=group) for model in models}
        count = max(row.get("questions", 0) for row in found.values())
        rows = [
            _row(model, [_cell(found[model].get("metrics", {}).get(name)) for name in _ANSWERS])
            for model in models
        ]
        blocks.append({"title": f"{group} ({count} questions)", "rows": rows})
    return {"first": "", "columns": list(_ANSWERS.values()), "blocks": blocks, "caption": ""}


def _headline(results: Results, models: Sequence[str]) -> list[str]:
    """One sentence a model: how right it is, and its best score for wrong answers beside the baselines."""
    found = []
    for model in models:
        row = _find(results["answers"], model=model, group=ALL)
        right = row.get("metrics", {}).get("correct")
        if not right or right["value"] is None:
            continue
        words = f"{model}: {100 * right['value']:.1f} % of {right['n']} answers right"
        rows = [r for r in results["estimators"] if (r["model"], r["group"]) == (model, ALL)]
        areas = {r["estimator"]: r["metrics"]["auroc"]["value"] for r in rows}
        if areas:
            best = max(areas, key=lambda name: areas[name])
            shown = [f"{name.replace('_', ' ')} {areas[name]:.3f}" for name in _BASELINES if name in areas]
            words += (
                f"; of {len(areas)} scores {best.replace('_', ' ')} finds the wrong ones best (AUROC "
                f"{areas[best]:.3f}, chosen on these questions), baselines {', '.join(shown)}"
            )
        found.append(words + ".")
    return found


def _estimators(results: Results, models: Sequence[str]) -> dict[str, Any]:
    rows = [row for row in results["estimators"] if row["group"] == ALL]
    blocks = []
    for family, title in _FAMILIES.items():
        names = dict.fromkeys(row["estimator"] for row in rows if row["family"] == family)
        lines = []
        for name in names:
            found = [_find(rows, model=model, estimator=name).get("metrics", {}) for model in models]
            cells = [_cell(one.get("auroc"), shade=True, extra=_bracket(one.get("prr"))) for one in found]
            lines.append(_row(name, cells, ESTIMATORS[name].title if name in ESTIMATORS else ""))
        if lines:
            blocks.append({"title": title, "rows": lines})
    return {"first": "uncertainty", "columns": models, "blocks": blocks, "caption": ""}


def _bracket(measured: Any) -> str:
    return "" if not measured or measured["value"] is None else f" ({_number(measured['value'], 2)})"


def _detection(results: Results, models: Sequence[str]) -> list[dict[str, Any]]:
    tables = []
    for question in dict.fromkeys(row["question"] for row in results["detection"]):
        rows = [row for row in results["detection"] if row["question"] == question]
        lines = [
            _row(
                name,
                [_cell(_find(rows, model=m, estimator=name).get("auroc"), shade=True) for m in models],
            )
            for name in dict.fromkeys(row["estimator"] for row in rows)
        ]
        blocks = [{"title": "", "rows": lines}]
        tables.append({"first": "AUROC", "columns": models, "blocks": blocks, "caption": question})
    return tables


def _has_draws(results: Results) -> bool:
    """Whether any number has an interval over draws."""
    return any(
        number.get("crossed_low") is not None
        for section in ("estimators", "confidences")
        for row in results[section]
        for number in row["metrics"].values()
    )


def _confidences(results: Results, models: Sequence[str]) -> dict[str, Any]:
    rows = [row for row in results["confidences"] if row["group"] == ALL]
    blocks = []
    for model in models:
        lines = []
        for row in (row for row in rows if row["model"] == model):
            floor = row["metrics"].get("ece_floor", {}).get("value")
            cells = [_cell(row["metrics"].get(name)) for name in _CONFIDENCE]
            cells[1]["interval"] += "" if floor is None else f" floor {floor:.3f}"
            lines.append(_row(row["confidence"], cells, f"T = {row['temperature']:.3g}"))
        if lines:
            blocks.append({"title": model, "rows": lines})
    return {"first": "confidence", "columns": list(_CONFIDENCE), "blocks": blocks, "caption": ""}


def _task_name(results: Results) -> str:
    """Name of the task; of a task file without its folder."""
    return Path(results["task"]).stem if results["task"].endswith((".yaml", ".yml")) else results["task"]


def _questions(results: Results) -> int:
    """How many test questions there are."""
    return max((row["questions"] for row in results["answers"] if row["group"] == ALL), default=0)


def _costs(results: Results, models: Sequence[str]) -> dict[str, Any]:
    """What every step took, of every model."""
    rows, blocks = results.get("cost", {}).get("by_estimator") or [], []
    for model in models:
        lines = []
        for row in (row for row in rows if row["model"] == model):
            forwards = "–" if row["forwards"] is None else f"{row['forwards']:.2f}"
            tokens = f"{row['tokens']:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
            texts = (f"{row['passes']:.1f}", forwards, tokens, f"{row['seconds']:.1f} s")
            cells = [{"text": text, "interval": "", "shade": None} for text in texts]
            needed = NEEDED_BY.get(row["estimator"], "")
            lines.append(_row(row["estimator"].replace("_", " "), cells, f"for {needed}" if needed else ""))
        if lines:
            blocks.append({"title": model, "rows": lines})
    heads = ["passes per question", "forward-equivalents per question", "tokens", "time"]
    return {"first": "step", "columns": heads, "blocks": blocks, "caption": ""}


def _facts(results: Results) -> list[tuple[str, str]]:
    cost = results.get("cost", {})
    facts = [
        ("task hash", results["task_sha256"][:16]),
        ("examples in the prompts", str(len(results["shots"]))),
    ]
    if "seconds" in cost:
        facts.append(("time", f"{cost['seconds']:.0f} s"))
    facts += [
        (f"time of {name}", f"{seconds:.0f} s") for name, seconds in cost.get("seconds_by_model", {}).items()
    ]
    return facts + [(name, str(version)) for name, version in results.get("versions", {}).items()]
