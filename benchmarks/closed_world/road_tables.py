"""Tables of the road by the package's own commands."""

import re
from typing import Any

from benchmarks.closed_world.cells import dig, markdown, mean, number
from benchmarks.closed_world.road import SHARES
from benchmarks.readme_table import Records

__all__ = ["road_table"]

RULES = {
    "plain": "weights, temperature, threshold on the confidence",
    "leading": "the same threshold behind the gate of leading directions",
}
TRAINED = {"adamw": "AdamW", "ivon": "IVON"}
GROUPS = ("known", "clean", "ambiguous", "base", "unknown", "near_miss")


def road_table(records: Records) -> str:
    """Shares answered by group and the error among the answers, %, mean over worlds."""
    lines = []
    units = [(o, who, ending, share) for o, who in TRAINED.items() for ending, share in SHARES.items()]
    for optimizer, who, ending, share in units:
        pattern = re.compile(rf"road/road_{optimizer}{ending}_\d+")
        found = [r["found"] for key, r in records.items() if pattern.fullmatch(key)]
        for rule, shown in RULES.items() if found else ():
            answered = [mean([100 * dig(one, rule, "answered", group) for one in found]) for group in GROUPS]
            errors = [100 * one[rule]["error"] for one in found if one[rule]["error"] is not None]
            cells: list[Any] = [
                who,
                f"{share:.2f}",
                shown,
                f"{len(errors)} of {len(found)}",
                *(number(x, 1) for x in answered),
            ]
            lines.append([*cells, number(mean(errors), 1) if errors else "—"])
    header = [
        "adapter",
        "share of rows for thresholds",
        "rule",
        "worlds with answers",
        *(group.replace("_", " ") for group in GROUPS),
        "error",
    ]
    return markdown(header, lines)
