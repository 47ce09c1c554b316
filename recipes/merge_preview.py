"""``vlora merge preview``: read the adapters, predict thousands of weightings, write a page and JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlora.files import atomic_write
from vlora.merge.config import MergeConfig
from vlora.merge.preview import Preview, preview
from vlora.posterior import Posterior
from vlora.recipes.merge_pages import preview_page
from vlora.recipes.tables import aligned

__all__ = ["preview_table", "run_preview"]


def run_preview(config: MergeConfig, out: Path, **settings: Any) -> Preview:
    """Preview a merge and write ``out`` with the endings ``.json`` and ``.html``.

    Args:
        config: The merge.
        out: Path without ending.
        **settings: ``count``, ``low``, ``high``, ``seed``, ``mixture``, ``variance`` and ``worth`` of
            :func:`vlora.merge.preview.search.preview`.

    Raises:
        VloraError: What does not fit, in one line; nothing is written then.
    """
    start = time.perf_counter()
    loaded = tqdm(config.adapters, desc="read adapters", file=sys.stderr, disable=None)
    inputs = [Posterior.from_pretrained(source.path, revision=source.revision) for source in loaded]
    done = preview(config, inputs, watch=_bar, **settings)
    atomic_write(out.with_name(out.name + ".json"), json.dumps(done.to_json()) + "\n")
    atomic_write(out.with_name(out.name + ".html"), preview_page(done))
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(f"previewed {len(done.weights)} weightings ({seconds:.1f} s)", file=sys.stderr)
    return done


def preview_table(done: Preview) -> str:
    """The named weightings, one line each, aligned for a terminal."""
    head = [
        "weighting",
        *(f"weight {task}" for task in done.tasks),
        *(f"increase {task}" for task in done.tasks),
    ]
    lines = [[*head, "average", "worst"]]
    for name, index in done.named.items():
        row = done.row(index)
        cells = [f"{row['weights'][task]:.3f}" for task in done.tasks]
        spread = row.get("std", {})
        for task in done.tasks:
            cells.append(f"{row['increase'][task]:.3f}" + (f" ± {spread[task]:.3f}" if spread else ""))
        lines.append([name, *cells, f"{row['average']:.3f}", f"{row['worst']:.3f}"])
    return "\n".join([aligned(lines), *_adapter_lines(done)])


def _adapter_lines(done: Preview) -> list[str]:
    """Of mixtures: the weight of every adapter, which is what a merge of that weighting takes."""
    rows = {name: done.row(index).get("adapter_weights", {}) for name, index in done.named.items()}
    return [
        f"{name}: " + ", ".join(f"{adapter} {weight:.3g}" for adapter, weight in weights.items())
        for name, weights in rows.items()
        if weights
    ]


def _bar(modules: Any) -> Any:
    return tqdm(modules, desc="quadratic models", file=sys.stderr, disable=None)
