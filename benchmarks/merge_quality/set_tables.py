"""Tables of sets of adapters of one kind: every arm, ours minus the others, curvature taken apart, rows, cost."""

from collections.abc import Sequence

import numpy as np

from benchmarks.merge_quality.records import (
    OURS,
    REFERENCES,
    Records,
    common_arms,
    differences,
    mean,
    scalars,
)
from benchmarks.readme_table import interval, markdown, number

__all__ = ["ablation_table", "cost_table", "main_table", "pairs_table", "rows_table", "unseen_table"]

UNSEEN = ("unseen accuracy", "unseen NLL", "unseen ECE")
"""Columns on domains that no merged adapter has seen, at the default scalar."""


def main_table(records: Records, only: Sequence[str] = ()) -> str:
    """Every arm (or some) with a scalar at its default and its best, floor and ceiling beside them."""
    rows = []
    unseen = bool(records[0]["unseen"])
    arms = common_arms(records)
    chosen = [a for a in arms if "best" in records[0]["arms"][a] and (not only or a in only)]
    for arm in [*REFERENCES, *chosen]:
        if arm not in arms:
            continue
        row = [arm]
        for kind in ("default", "best"):
            row += [number(100 * mean(records, arm, kind, metric), 1) for metric in ("accuracy", "worst")]
            row += [number(mean(records, arm, kind, metric), 3) for metric in ("nll", "ece", "nll_tempered")]
        row.append(scalars(records, arm))
        if unseen:
            row.append(number(100 * mean(records, arm, "default", "accuracy", "unseen"), 1))
            row += [number(mean(records, arm, "default", metric, "unseen"), 3) for metric in ("nll", "ece")]
        rows.append(row)
    head = ["accuracy", "worst", "NLL", "ECE", "NLL tempered"]
    header = ["arm", *head, *(f"{name}, best" for name in head), "best scalar"]
    return markdown([*header, *(UNSEEN if unseen else [])], rows)


def pairs_table(records: Records, only: Sequence[str] = ()) -> str:
    """Kronecker gradient matching at its default minus every other arm, at its default and at its best scalar."""
    rows = []
    for arm in [a for a in common_arms(records) if "best" in records[0]["arms"][a] and "rank 8" not in a]:
        if arm == OURS or (only and arm not in only):
            continue
        for kind in ("default", "best"):
            row = [arm, kind]
            for metric, scale, digits in (
                ("accuracy", 100, 1),
                ("worst", 100, 1),
                ("nll", 1, 3),
                ("ece", 1, 3),
            ):
                row.append(interval(scale * differences(records, arm, kind, metric), digits))
            rows.append(row)
    return markdown(["ours minus", "scalar", "accuracy, points", "worst task, points", "NLL", "ECE"], rows)


def unseen_table(records: Records, only: Sequence[str] = ()) -> str:
    """Ours minus every other arm on domains that no adapter has seen, at its default and at its best scalar."""
    rows = []
    for arm in [a for a in common_arms(records) if "best" in records[0]["arms"][a] and "rank 8" not in a]:
        if arm == OURS or (only and arm not in only):
            continue
        for kind in ("default", "best"):
            found = [
                interval(scale * differences(records, arm, kind, metric, "unseen"), digits)
                for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3), ("ece", 1, 3))
            ]
            rows.append([arm, kind, *found])
    return markdown(["ours minus", "scalar", *UNSEEN], rows)


def ablation_table(records: Records) -> str:
    """Curvature taken apart, at the default scalar: mean over all sets of the families."""
    names = [a for a in records[0]["arms"] if "best" not in records[0]["arms"][a] and a not in REFERENCES]
    rows = []
    for arm in ["task arithmetic (sum)", *names, OURS, "MaTS"]:
        row = [{OURS: "G (gradient matching)", "MaTS": "G and S (MaTS)"}.get(arm, arm)]
        row += [number(100 * mean(records, arm, "default", metric), 1) for metric in ("accuracy", "worst")]
        rows.append([*row, number(mean(records, arm, "default", "nll"), 3)])
    return markdown(["curvature", "accuracy", "worst", "NLL"], rows)


def rows_table(records: Records) -> str:
    """Accuracy, worst task and NLL over the rows that Grams were measured on, at the default scalar."""
    arms = [arm for arm in records[0]["arms"] if arm.endswith(" rows")]
    rows = []
    for kind in dict.fromkeys(arm.rsplit(", ", 1)[0] for arm in arms):
        cells = [
            f"{100 * mean(records, arm, 'default', 'accuracy'):.1f} / "
            f"{100 * mean(records, arm, 'default', 'worst'):.1f} / {mean(records, arm, 'default', 'nll'):.3f}"
            for arm in arms
            if arm.startswith(kind)
        ]
        rows.append([kind, *cells])
    counts = dict.fromkeys(arm.rsplit(", ", 1)[1] for arm in arms)
    return markdown(["accuracy / worst / NLL", *counts], rows)


def cost_table(records: Records) -> str:
    """CPU seconds of a merge of five modules, median over sets, of the arms that noted it."""
    found: dict[str, list[float]] = {}
    for record in records:
        for arm, scores in record["arms"].items():
            if "merge_seconds" in scores and arm != "MaTS, rank 8":  # cut from the other
                found.setdefault(arm, []).append(scores["merge_seconds"])
    rows = [[arm, number(float(np.median(seconds)), 1)] for arm, seconds in found.items()]
    return markdown(["arm", "CPU seconds"], rows)
