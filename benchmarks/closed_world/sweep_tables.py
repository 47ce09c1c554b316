"""Tables of merges at their default and at their best factors, of two and of four adapters, and of unlearning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.closed_world.cells import SOURCES, dig, interval, markdown, mean, number
from benchmarks.closed_world.ways import Way
from benchmarks.readme_table import Records

__all__ = ["sweep_table", "unlearning_table"]

DEFAULT, BEST, LOWEST = "default", "best recall", "best NLL"
OURS = "gradient_matching"


def sweep_table(records: Records, part: str, ways: Mapping[str, Way]) -> str:
    """Recall and NLL of every merge, and how far gradient matching at its default is ahead of it at its best."""
    lines = []
    for source, shown in SOURCES.items():
        seeds = sorted(r["world"] for key, r in records.items() if key.startswith(f"{part}/{source}_{OURS}_"))
        alone = [records[key]["alone"] for s in seeds if (key := f"{part}/{source}_alone_{s}") in records]
        if alone:
            own = mean([one[a]["recall"][a] for one in alone for a in one])
            base = mean([numbers["recall"]["base"] for one in alone for numbers in one.values()])
            lines.append(
                [shown, "each alone", str(len(alone)), number(own, 1, 100), number(base, 1, 100), *["—"] * 8]
            )
        ours = [records[f"{part}/{source}_{OURS}_{seed}"] for seed in seeds]
        for name, way in ways.items():
            found = [records.get(f"{part}/{source}_{name}_{seed}", {}) for seed in seeds]
            if any(found):
                lines.append(
                    [
                        shown,
                        way.shown,
                        str(sum(map(bool, found))),
                        *_cells(found, ours if name != OURS else []),
                    ]
                )
    header = [
        "adapters",
        "merge",
        "taught, %",
        "base, %",
        "NLL",
        "best factor",
        "taught, %",
        "base, %",
        "NLL at its best",
    ]
    header += [
        "gradient matching − best: taught, points",
        "NLL",
        "gradient matching at its best − best: taught, points",
    ]
    return markdown(header, lines)


def _cells(found: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        number(mean([_taught(one, DEFAULT) for one in found]), 1, 100),
        number(mean([dig(one, "found", DEFAULT, "recall", "base") for one in found]), 1, 100),
        number(mean([dig(one, "found", DEFAULT, "nll") for one in found])),
        number(mean([dig(one, "found", BEST, "scale") for one in found]), 2),
        number(mean([_taught(one, BEST) for one in found]), 1, 100),
        number(mean([dig(one, "found", BEST, "recall", "base") for one in found]), 1, 100),
        number(mean([dig(one, "found", LOWEST, "nll") for one in found])),
    ]
    if not ours:
        return [*cells, "—", "—", "—"]
    pairs = list(zip(ours, found, strict=True))
    points = np.array([100 * (_taught(own, DEFAULT) - _taught(other, BEST)) for own, other in pairs])
    nll = np.array([dig(a, "found", DEFAULT, "nll") - dig(b, "found", LOWEST, "nll") for a, b in pairs])
    best = np.array([100 * (_taught(own, BEST) - _taught(other, BEST)) for own, other in pairs])
    return [*cells, interval(points, 1), interval(nll), interval(best, 1)]


def _taught(record: dict[str, Any], which: str) -> float:
    """Mean recall of the adapters' own facts."""
    known = record.get("found", {}).get(which, {}).get("recall", {})
    return mean([value for key, value in known.items() if key != "base"])


def unlearning_table(records: Records) -> str:
    """Recall of A's, B's and the base people's facts with A, and after A was taken out."""
    found = [record["found"] for key, record in records.items() if key.startswith("unlearning/")]
    lines = []
    for name in dict.fromkeys(name for one in found for name in one):
        own = [one[name] for one in found if name in one]
        refused = sum("refused" in one for one in own)
        cells = [number(mean([dig(one, "recall", key) for one in own]), 1, 100) for key in ("a", "b", "base")]
        nll = number(mean([dig(one, "nll") for one in own if "refused" not in one]))
        lines.append([name, *cells, nll, str(refused) if refused else "—"])
    return markdown(["", "A, %", "B, %", "base, %", "NLL of all", "worlds refused"], lines)
