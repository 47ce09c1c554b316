"""The report: ``results.json`` as one self-contained HTML page for people.

The page needs no network, no script and no other file: style sheet and figures are inlined. It is readable in light
and dark mode and on paper. All text that comes from data is escaped; the same results give the same bytes, the only
time shown is the one stored in the results.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlora.errors import DataError, OutputError
from vlora.eval.baselines import absent_notes
from vlora.eval.item_warnings import item_notes
from vlora.eval.report_all import all_detection, all_metrics, cost_table, promises, wrong_answers
from vlora.eval.report_figures import figure_blocks, mistake_blocks
from vlora.eval.report_format import amount, moment, number, value_of
from vlora.eval.report_headline import findings, headline
from vlora.eval.report_health import health_table
from vlora.eval.report_marks import agreement_notes
from vlora.eval.report_pairs import best_keys, comparison_tables, detection_table
from vlora.eval.report_tables import (
    Results,
    group_names,
    group_tables,
    main_table,
    models_of,
)

__all__ = ["FORMAT", "environment", "render_report", "style_sheet", "write_report"]

FORMAT = 1
_HERE = Path(__file__).parent
_TASKS = {
    "sequence_classification": "sequence classification",
    "multiple_choice": "multiple choice",
    "causal_lm": "language modelling",
    "language_modelling": "language modelling",
}


def render_report(results: Mapping[str, Any], *, title: str | None = None) -> str:
    """Render results as one self-contained HTML page.

    Args:
        results: The content of ``results.json`` (format 1). Missing parts leave their sections out; missing numbers
            are shown as an en dash.
        title: Heading of the page; the default names the task.

    Returns:
        The page as a string. It holds no external reference and no script.

    Raises:
        DataError: If ``results`` is not of a format that this version reads.
    """
    if results.get("format") != FORMAT:
        raise DataError(
            f"expected results of format {FORMAT}, got format {results.get('format')!r}: "
            "write results.json again with this version of vlora"
        )
    page = environment().get_template("report.html.j2").render(_view(results, title))
    return page if page.endswith("\n") else page + "\n"


def write_report(results: Mapping[str, Any], path: str | Path, *, title: str | None = None) -> Path:
    """Write the report; an existing file is replaced only once the new one is complete.

    Args:
        results: As for :func:`render_report`.
        path: The file to write; its folder is created.
        title: As for :func:`render_report`.

    Returns:
        ``path``.

    Raises:
        DataError: If ``results`` is not of a format that this version reads.
        OutputError: If the file cannot be written; nothing is changed then.
    """
    path = Path(path)
    page = render_report(results, title=title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, page)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write the report to {path}: {reason}; choose another output folder"
        ) from error
    return path


def _replace(path: Path, page: str) -> None:
    """Write beside ``path`` and rename; the temporary file never survives a failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(page)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@cache
def environment() -> Environment:
    """Return the template environment: everything is escaped, an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style_sheet() -> str:
    """Return the style sheet of every page."""
    return (_HERE / "report.css").read_text(encoding="utf-8")


def _view(results: Results, title: str | None) -> dict[str, Any]:
    """Return everything that the template shows."""
    task = str(results.get("task") or "evaluation")
    figures = figure_blocks(results)
    for block in figures.values():
        for panel in block["panels"]:
            panel["svg"] = Markup(panel["svg"])  # our own drawing: it holds no text from data
    best = best_keys(results)
    unscored = group_names(results)[2]
    return {
        "title": title or f"What the models know: {_TASKS.get(task, task)}",
        "task": _TASKS.get(task, task),
        "created": moment(results.get("created")),
        "num_samples": results.get("num_samples") or 0,
        "antithetic": bool(results.get("antithetic")),
        "css": Markup(style_sheet()),
        "headline": [headline(results, name) for name in models_of(results)],
        "findings": findings(results, best),
        "notes": item_notes(results, task) + absent_notes(results) + agreement_notes(results),
        "models": [_model_row(m) for m in results.get("models") or []],
        "health": health_table(results),
        "main": main_table(results, best),
        "everything": all_metrics(results),
        "all_detection": all_detection(results),
        "wrong_answers": wrong_answers(results),
        "promises": promises(results),
        "groups": group_tables(results),
        "has_unscored": bool(unscored),
        "detection": detection_table(results),
        "comparisons": comparison_tables(results),
        "figures": figures,
        "thresholds": _promised(results),
        "mistakes": mistake_blocks(results),
        "cost": [(_plain_key(k), amount(k, v)) for k, v in _flat(results.get("cost")) if k != "by_estimator"],
        "cost_table": cost_table(results),
        "versions": [(k, str(v)) for k, v in _flat(results.get("versions"))],
        "hardware": [(_plain_key(k), amount(k, v)) for k, v in _flat(results.get("hardware"))],
        "settings": _yaml(results.get("settings")),
    }


def _promised(results: Results) -> str:
    """Return the error rate that thresholds on the test rows were to keep, or nothing."""
    rules = [one.get("abstention") or {} for one in results.get("promises") or [] if one["set"] == "test"]
    return next((f"{100 * r['promised']:g} %" for r in rules if value_of(r.get("risk")) is not None), "")


def _model_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of the models table."""
    ess = value_of(entry.get("ess"))
    sources = entry.get("sources") or entry.get("members") or []
    return {
        "name": entry["name"],
        "kind": entry.get("kind") or "",
        "path": entry.get("path") or "",
        "ess": amount("ess", ess),
        "temperature": number(value_of(entry.get("temperature")), 3),
        "sources": [_source(s) for s in ([sources] if isinstance(sources, (str, Mapping)) else sources)],
        "summary": _yaml(entry.get("summary")),
    }


def _source(source: Any) -> str:
    """Return one input of a merge in words: its name or path, and its weight."""
    if not isinstance(source, Mapping):
        return str(source)
    name = next((str(source[k]) for k in ("name", "path", "folder", "id") if source.get(k)), "")
    weight = value_of(source.get("weight"))
    return f"{name} × {weight:g}" if weight is not None else name or json.dumps(dict(source), sort_keys=True)


def _flat(entries: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return a nested mapping as (dotted key, value), or nothing for a missing one."""
    pairs: list[tuple[str, Any]] = []
    for key, value in (entries or {}).items():
        nested = isinstance(value, Mapping)
        pairs += _flat(value, f"{prefix}{key} ") if nested else [(f"{prefix}{key}", value)]
    return pairs


def _plain_key(key: str) -> str:
    """Return a key as words without the unit that its value shows."""
    return (
        key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ") if key != "seconds" else "time"
    )


def _yaml(content: Any) -> str:
    """Return plain data as YAML, the form in which a user writes it; nothing for nothing."""
    if not content:
        return ""
    return yaml.safe_dump(
        json.loads(json.dumps(content, default=str)), sort_keys=False, allow_unicode=True, width=100
    )
