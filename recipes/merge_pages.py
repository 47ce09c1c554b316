"""HTML pages about merges: self-contained, no script, in the style of the evaluation report."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlora.merge.preview import Preview
from vlora.recipes.merge_figures import conflict_maps, preview_figure

__all__ = ["merge_page", "page", "preview_page"]


def merge_page(report: Mapping[str, Any]) -> str:
    """What a merge did, as one HTML page: inputs, notes, conflict map, table of modules, identities.

    Args:
        report: Content of ``merge_report.json``.
    """
    modules = report["modules"]
    maps = [{**m, "what": m["name"]} for m in conflict_maps(modules, "increase")]
    apart = [{**m, "what": "all pairs"} for m in conflict_maps(modules, "disagreement", full=2.0)]
    settings = {"rank": report["rank_summary"] or report["rank"], **report["options"]}
    return page(
        "merge.html.j2",
        title=f"Merge by {report['method']}",
        sub=f"{len(report['adapters'])} adapters, {len(modules)} modules; "
        + ", ".join(f"{key}: {value}" for key, value in settings.items()),
        notes=report["notes"],
        adapters=report["adapters"],
        totals=report["conflict"],
        maps=maps,
        apart=apart,
        names=[source["name"] for source in report["adapters"]],
        modules=modules,
        identities={k: v for k, v in report["identities"].items() if k not in ("modules", "tolerance")},
        checked=report["identities"].get("modules", []),
        sensitivity=report.get("sensitivity", {}),
    )


def preview_page(preview: Preview) -> str:
    """A preview as one HTML page: named weightings, all weightings as a picture, the front."""
    figure, caption = preview_figure(preview)
    rows = [(name, preview.row(index)) for name, index in preview.named.items()]
    return page(
        "preview.html.j2",
        title="Which weighting to merge",
        sub=f"{len(preview.weights)} weightings of {len(preview.tasks)} tasks: "
        + ", ".join(f"{task} ({', '.join(own)})" for task, own in preview.members.items()),
        notes=preview.notes,
        tasks=preview.tasks,
        rows=rows,
        has_std=preview.std is not None,
        has_shares=preview.shares is not None,
        legend=[{"name": name, "colour": f"c{i + 1}"} for i, name in enumerate(preview.named)],
        figure=Markup(figure),  # our own drawing: it holds no text from data
        caption=caption,
        front=[preview.row(index) for index in preview.front],
    )


def page(template: str, **view: Any) -> str:
    """Render one page; every text is escaped and an unknown name is an error."""
    css = Markup(files("vlora.eval").joinpath("report.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(css=css, **view) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vlora.recipes", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment


def _figure(value: Any, pattern: str = "%.3f") -> str:
    """A number in a table; a dash for what is not there, words as they are."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return pattern % value
    return "–" if value is None or value == "" else str(value)
