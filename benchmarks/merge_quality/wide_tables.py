"""Tables of every merge over a wide grid of scalars.

An interval is mean ± t(.975, n - 1) s.e. over n sets of adapters, paired by set.
"""

import numpy as np

from benchmarks.merge_quality.curve_tables import Section
from benchmarks.merge_quality.records import OURS, Records, common_arms, mean, scalars, value
from benchmarks.readme_table import interval, markdown, number

__all__ = ["by_scalar", "kinds_of", "wide_differences", "wide_scores", "wide_sections"]

_NOUN = {"mixed": "different tasks", "domains": "domains"}


def wide_sections(records: Records) -> list[Section]:
    """Title, records and table: validation NLL per scalar and kind of set, then test rows at the best scalars."""
    kinds = kinds_of(records)
    told = [
        (f"Validation NLL at every scalar, {title} ({len(sets)} sets)", sets, by_scalar)
        for title, sets in kinds.items()
    ]
    several = records if all(len(sets) > 1 for sets in kinds.values()) else []
    return [
        *told,
        (
            "Test rows at the best scalar of the wide grid, accuracy / worst / NLL, scalars",
            records,
            wide_scores,
        ),
        (
            "Ours at its default minus others at the best scalar of the wide grid, points and nats",
            several,
            lambda found: wide_differences(found, "default"),
        ),
        (
            "Both at the best scalar of the wide grid, points and nats",
            several,
            lambda found: wide_differences(found, "best"),
        ),
    ]


def by_scalar(records: Records) -> str:
    """Mean validation NLL over sets of one kind, the lowest of a row in bold."""
    arms = [arm for arm in common_arms(records) if "validation_nll" in records[0]["arms"][arm]]
    grid = list(records[0]["arms"][arms[0]]["validation_nll"])
    rows = []
    for arm in arms:
        values = [np.mean([r["arms"][arm]["validation_nll"][scalar] for r in records]) for scalar in grid]
        lowest = int(np.argmin(values))
        rows.append([arm, *(f"**{v:.3f}**" if i == lowest else f"{v:.3f}" for i, v in enumerate(values))])
    return markdown(["arm", *(f"{float(scalar):g}" for scalar in grid)], rows)


def wide_scores(records: Records) -> str:
    """Every arm at its best scalar on test rows, by kind of set."""
    kinds, rows = kinds_of(records), []
    for arm in _arms(records):
        cells = []
        for sets in kinds.values():
            metrics = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3))
            told = [
                number(scale * mean(sets, arm, "best", metric), digits) for metric, scale, digits in metrics
            ]
            known = all(arm in record["arms"] for record in sets)
            cells.append(f"{' / '.join(told)} at {scalars(sets, arm)}" if known else "—")
        rows.append([arm, *cells])
    return markdown(["arm", *kinds], rows)


def wide_differences(records: Records, ours: str) -> str:
    """Ours at its default or best scalar minus every other arm at its best, by kind of set."""
    kinds, rows = kinds_of(records), []
    for arm in [name for name in _arms(records) if ours == "default" or name != OURS]:
        cells = []
        for sets in kinds.values():
            gaps = {
                metric: np.array([value(r, OURS, ours, metric) - value(r, arm, "best", metric) for r in sets])
                for metric in ("accuracy", "nll")
            }
            told = (interval(100 * gaps["accuracy"], 1), interval(gaps["nll"], 3))
            cells.append("—" if "—" in told else "; ".join(told))
        rows.append([arm, *cells])
    return markdown(["ours minus", *kinds], rows)


def _arms(records: Records) -> list[str]:
    """Arms that any kind of set has, in the order of the longest record."""
    longest = max((record["arms"] for record in records), key=len)
    every = dict.fromkeys([*longest, *(arm for record in records for arm in record["arms"])])
    return [arm for arm in every if any("best" in record["arms"].get(arm, {}) for record in records)]


def kinds_of(records: Records) -> dict[str, Records]:
    """Records by family and number of adapters, different tasks first."""
    found: dict[str, Records] = {}
    for family, count in sorted(
        {(r["family"], r["count"]) for r in records}, key=lambda k: (k[0] != "mixed", k[1])
    ):
        sets = [r for r in records if (r["family"], r["count"]) == (family, count)]
        found[f"{count} {_NOUN[family]}"] = sets
    return found
