"""Tables of runs that went on from one ancestor: sums by sites against the other ways to merge them."""

from collections.abc import Callable

import numpy as np

from benchmarks.merge_quality.records import Records, common_arms, mean, value
from benchmarks.readme_table import interval, markdown, number

__all__ = [
    "SITES",
    "distances",
    "lineage_differences",
    "lineage_scores",
    "lineage_sections",
    "pulled_table",
    "with_groups",
]

SITES = "sites"
_GROUPS = {"tasks": "runs' domains", "old": "ancestor's", "unseen": "unseen"}


def lineage_sections(found: Records, pulled: Records) -> list[tuple[str, Records, Callable[[Records], str]]]:
    """Title, records and table of every part."""
    sections: list[tuple[str, Records, Callable[[Records], str]]] = []
    for name, title in (("one", "on one domain"), ("four", "on four domains")):
        records = with_groups([record for record in found if record["ancestor"] == name])
        told = f"Three runs that went on from an ancestor trained {title}, {len(records)} seeds"
        sections += [
            (told, records, lineage_scores),
            ("Paired differences on these", records if len(records) > 1 else [], lineage_differences),
            ("How far the runs went, |A - A of the ancestor| / |A of the ancestor|", records, distances),
        ]
    told = (
        "Runs that were trained under the ancestor's posterior, over all domains that the merge has data for"
    )
    return [*sections, (told, pulled if found else [], lambda these: pulled_table(found, these))]


def pulled_table(records: Records, pulled: Records) -> str:
    """Sums by sites of runs that were trained under the ancestor's posterior, minus those of runs that were not."""
    beside = {(record["ancestor"], record["seed"]): record for record in with_groups(records)}
    rows = []
    for size in ("one", "four"):
        found = [r for r in with_groups(pulled) if r["ancestor"] == size and (size, r["seed"]) in beside]
        for arm in (SITES, f"{SITES}, ancestor's prior left out"):
            name, cells = f"{arm}, pulled runs", []
            for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3)):
                cells.append(number(scale * mean(found, name, "default", metric, "all"), digits))
                gaps = [
                    value(r, name, "default", metric, "all")
                    - value(beside[size, r["seed"]], arm, "default", metric, "all")
                    for r in found
                ]
                cells.append(interval(scale * np.array(gaps), digits))
            rows.append([f"{arm}; ancestor of {size}", *cells])
    return markdown(["arm", "accuracy", "minus not pulled, points", "NLL", "minus not pulled"], rows)


def with_groups(records: Records) -> Records:
    """Records by seed, with ``all``: every domain that the merge has data for."""
    found = [{**record, "all": [*record["tasks"], *record["old"]]} for record in records]
    return sorted(found, key=lambda record: record["seed"])


def lineage_scores(records: Records) -> str:
    """Accuracy and NLL by group of domains at scalar 1, and over all that the merge has data for at the best one."""
    rows = []
    for arm in common_arms(records):
        row = [arm]
        row += [number(100 * mean(records, arm, "default", "accuracy", over), 1) for over in _GROUPS]
        row += [number(mean(records, arm, "default", "nll", over), 3) for over in _GROUPS]
        row.append(number(100 * mean(records, arm, "best", "accuracy", "all"), 1))
        row.append(number(mean(records, arm, "best", "nll", "all"), 3))
        scalars = {record["arms"][arm].get("scalar") for record in records} - {None}
        rows.append([*row, ", ".join(f"{scalar:.2g}" for scalar in sorted(scalars)) or "—"])
    names = list(_GROUPS.values())
    header = [
        "arm",
        *(f"accuracy, {n}" for n in names),
        *(f"NLL, {n}" for n in names),
        "accuracy, runs' and ancestor's, best",
        "NLL, runs' and ancestor's, best",
        "best scalars",
    ]
    return markdown(header, rows)


def lineage_differences(records: Records) -> str:
    """Sites at weights of 1 minus every arm, over all domains that the merge has data for, paired by seed."""
    rows = []
    for arm in common_arms(records):
        if arm == SITES:
            continue
        for kind in ("default", "best"):
            if kind not in records[0]["arms"][arm]:
                continue
            cells = [
                interval(scale * np.array([_gap(r, arm, kind, metric) for r in records]), digits)
                for metric, scale, digits in (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3))
            ]
            rows.append([arm, kind, *cells])
    return markdown(["sites minus", "scalar", "accuracy, points", "worst domain, points", "NLL"], rows)


def distances(records: Records) -> str:
    """How far A went, per module: least, mean and largest over runs."""
    rows = []
    for module in records[0]["from_ancestor"]:
        values = [v for record in records for v in record["from_ancestor"][module].values()]
        name = module.split(".", 3)[-1]
        rows.append([name, *(number(float(f(values)), 2) for f in (np.min, np.mean, np.max))])
    return markdown(["module", "least", "mean", "largest"], rows)


def _gap(record: dict, arm: str, kind: str, metric: str) -> float:
    ours = value(record, SITES, "default", metric, "all")
    return ours - value(record, arm, kind, metric, "all")
