"""Tables over the number of adapters: every arm, and what separates the merge from single adapters and joint training.

An interval is mean ± t(.975, n - 1) s.e. over n sets of adapters of one number and family.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.merge_quality.records import OURS, Records, family, mean, scalars, value
from benchmarks.readme_table import interval, markdown, number

__all__ = ["Section", "curve_sections", "curve_table", "separation_table"]

Section = tuple[str, Records, Callable[[Records], str]]
_SINGLE, _JOINT = "individual adapters", "joint training"


def curve_sections(records: Records) -> list[Section]:
    """Title, records and table: domains with unseen ones, different tasks, at the default and at the best scalar."""
    domains, mixed = ([r for r in records if r["family"] == name] for name in ("domains", "mixed"))
    best = "each at its best scalar"
    several = len({record["count"] for record in mixed}) > 1
    mixed = mixed if several else []
    return [
        ("More adapters", domains, curve_table),
        ("More adapters, unseen domains", domains, lambda found: curve_table(found, "unseen")),
        (f"More adapters, {best}", domains, lambda found: curve_table(found, kind="best")),
        (
            f"More adapters, unseen domains, {best}",
            domains,
            lambda found: curve_table(found, "unseen", "best"),
        ),
        ("More adapters of different tasks", mixed, curve_table),
        (f"More adapters of different tasks, {best}", mixed, lambda found: curve_table(found, kind="best")),
        (
            "What separates the merge from single adapters and from joint training, defaults, IVON",
            [record for record in records if record["optimizer"] == "ivon"],
            separation_table,
        ),
    ]


def curve_table(records: Records, over: str = "tasks", kind: str = "default") -> str:
    """Adapters of one family with independent starts over their number, on their own tasks or on unseen ones."""
    name = records[0]["family"]
    counts = sorted({r["count"] for r in records if r["gauge"] == "independent"})
    found = {c: family(records, (name, c, "independent", "ivon")) for c in counts}
    counts = [c for c in counts if found[c][0][over]]
    arms = list(found[counts[-1]][0]["arms"]) if counts else []
    metrics: list[tuple[str, float, int]] = [("accuracy", 100, 1)]
    metrics += [("worst", 100, 1), ("nll", 1, 3)] if over == "tasks" else [("nll", 1, 3), ("ece", 1, 3)]
    rows = []
    for arm in arms:
        cells = []
        for count in counts:
            told = [
                number(scale * mean(found[count], arm, kind, metric, over), digits)
                for metric, scale, digits in metrics
            ]
            told += [f"at {scalars(found[count], arm)}"] if kind == "best" else []
            cells.append(" / ".join(told))
        if not np.isnan([mean(found[c], arm, kind, "nll", over) for c in counts]).all():
            rows.append([arm, *cells])
    head = "accuracy / worst / NLL" if over == "tasks" else "accuracy / NLL / ECE"
    head += " / best scalars" if kind == "best" else ""
    noun = "domains" if name == "domains" else "tasks"
    return markdown([head, *(f"{count} {noun}" for count in counts)], rows)


def separation_table(records: Records) -> str:
    """Single adapters, the merge and joint training, and the two parts of merge minus joint, paired by set."""
    kinds = [(name, count) for name in ("mixed", "domains") for count in (2, 4, 8, 12)]
    rows = []
    for name, count in kinds:
        sets = [r for r in records if (r["family"], r["count"]) == (name, count)]
        if not sets or any(_JOINT not in record["arms"] for record in sets):
            continue
        noun = "different tasks" if name == "mixed" else "domains"
        cells = [
            " / ".join(
                number(scale * mean(sets, arm, "default", metric), digits)
                for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3))
            )
            for arm in (_SINGLE, OURS, _JOINT)
        ]
        for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3)):
            for one, other in ((OURS, _SINGLE), (_JOINT, _SINGLE), (OURS, _JOINT)):
                cells.append(interval(scale * _gaps(sets, one, other, metric), digits))
        rows.append([f"{count} {noun} ({len(sets)})", *cells])
    gaps = ["merge − single", "joint − single", "merge − joint"]
    header = ["sets", *(f"{who}, accuracy / NLL" for who in ("single", "merge", "joint"))]
    return markdown([*header, *(f"{gap}, points" for gap in gaps), *(f"{gap}, nats" for gap in gaps)], rows)


def _gaps(records: Records, one: str, other: str, metric: str) -> np.ndarray:
    return np.array([value(r, one, "default", metric) - value(r, other, "default", metric) for r in records])
