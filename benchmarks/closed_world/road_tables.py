"""Tables of the road by the package's own commands."""

from typing import Any

from benchmarks.closed_world.cells import dig, markdown, mean, number
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
    for optimizer, who in TRAINED.items():
        found = [r["found"] for key, r in records.items() if key.startswith(f"road/road_{optimizer}_")]
        for rule, shown in RULES.items() if found else ():
            answered = [mean([100 * dig(one, rule, "answered", group) for one in found]) for group in GROUPS]
            errors = [100 * one[rule]["error"] for one in found if one[rule]["error"] is not None]
            cells: list[Any] = [
                who,
                shown,
                f"{len(errors)} of {len(found)}",
                *(number(x, 1) for x in answered),
            ]
            lines.append([*cells, number(mean(errors), 1) if errors else "—"])
    header = [
        "adapter",
        "rule",
        "worlds with answers",
        *(group.replace("_", " ") for group in GROUPS),
        "error",
    ]
    return markdown(header, lines)
