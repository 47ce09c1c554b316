"""Tables of what is left after merging: recall and calibration, differences between merges."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.closed_world.cells import (
    METHODS,
    SOURCES,
    dig,
    interval,
    markdown,
    mean,
    number,
)
from benchmarks.closed_world.stages import worlds
from benchmarks.readme_table import Records, with_half_width

__all__ = ["merge_differences", "merge_table"]


def merge_table(records: Records) -> str:
    """Recall and calibration after merging."""
    lines = []
    for source, shown in SOURCES.items():
        alone = [r["recall"] for name, r in records.items() if name.startswith(f"merge/{source}_alone_")]
        if alone:
            own = [mean([r[a][a] for r in alone]) for a in ("a", "b")]
            base = mean([r[a]["base"] for r in alone for a in ("a", "b")])
            lines.append([shown, "each alone", *(number(v, 1, 100.0) for v in [*own, base]), *["—"] * 9])
        for method, name in METHODS.items():
            found = [r for key, r in records.items() if key.startswith(f"merge/{source}_{method}_")]
            drawn = [r for key, r in records.items() if key.startswith(f"posterior/{source}_posterior_")]
            if found:
                lines.append([shown, name, *_merged(found, drawn if method == "equal_votes" else [])])
    header = ["adapters", "merge", "A, %", "B, %", "base, %", "NLL seen", "ECE seen (floor)", "+ temperature"]
    areas = ["entropy", "information", "entropy × base", "information × base"]
    areas += ["unknown vs ambiguous: entropy", "information"]
    return markdown([*header, *areas], lines)


def merge_differences(records: Records) -> str:
    """Gradient matching minus every other merge, paired by world: recall of A and B, NLL of all known people."""

    def of(source: str, method: str, *keys: str) -> np.ndarray:
        return np.array(
            [dig(records.get(f"merge/{source}_{method}_{w}", {}), *keys) for w in worlds(records)]
        )

    lines = []
    for source, shown in SOURCES.items():
        for method, name in METHODS.items():
            if method != "gradient_matching" and any(
                f"merge/{source}_{method}_{w}" in records for w in worlds(records)
            ):
                gains = [
                    of(source, one, "recall", "mean", "a") + of(source, one, "recall", "mean", "b")
                    for one in ("gradient_matching", method)
                ]
                nll = [
                    of(source, one, "scores", "mean", "seen", "nll") for one in ("gradient_matching", method)
                ]
                cells = [interval(50 * (gains[0] - gains[1]), 1), interval(nll[0] - nll[1])]
                lines.append([shown, name, *cells])
    return markdown(["adapters", "gradient matching minus", "recall of A and B, points", "NLL seen"], lines)


def _merged(found: Sequence[dict[str, Any]], drawn: Sequence[dict[str, Any]]) -> list[str]:
    """Cells of one merge: at its mean, and of its posterior where that was looked at; ± over worlds."""

    def of(*keys: str, records: Sequence[dict[str, Any]] = found) -> np.ndarray:
        return np.array([dig(record, *keys) for record in records])

    best = "linearised, full"
    seen = ("scores", "mean", "seen")
    unknown = ("auroc", "unknown vs seen")
    return [
        *(with_half_width(of("recall", "mean", group), 1, 100.0) for group in ("a", "b", "base")),
        with_half_width(of(*seen, "nll")),
        f"{with_half_width(of(*seen, 'ece'))} ({number(mean(of(*seen, 'ece_floor')))})",
        with_half_width(of("scores", "mean + temperature", "seen", "nll")),
        with_half_width(of("scores", "mean", *unknown, "entropy")),
        with_half_width(of("scores", best, *unknown, "mutual_information", records=drawn)),
        with_half_width(of("scores", "mean", *unknown, "entropy_base")),
        with_half_width(of("scores", best, *unknown, "mutual_information_base", records=drawn)),
        with_half_width(of("scores", "mean", "auroc", "unknown vs ambiguous", "entropy")),
        with_half_width(
            of("scores", best, "auroc", "unknown vs ambiguous", "mutual_information", records=drawn)
        ),
    ]
