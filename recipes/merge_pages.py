"""HTML pages about merges: self-contained, no script, in the style of the evaluation report."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlora.merge.preview import Preview
from vlora.recipes.merge_figures import preview_figure

__all__ = ["page", "preview_page"]


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
    return Environment(
        loader=PackageLoader("vlora.recipes", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
