"""Tables of the share of the prior variance that the data left: practice and test rows, beside other detectors."""

import math
from typing import Any

import numpy as np

from benchmarks.classification_uq.left import FACTORS
from benchmarks.classification_uq.share import MULTIPLES
from benchmarks.readme_table import interval, markdown, mean, number

__all__ = ["joined", "left_differences", "left_practice", "left_table", "share_practice", "share_table"]

KINDS = {
    "linearised": "independent entries",
    "kronecker": "Kronecker factors",
    "leading": "all tensors at once",
}
TRAINED = {"ivon": "IVON auto", "laplace": "AdamW"}
COLUMNS = (
    "ambiguous over clean", "near over ambiguous", "far over ambiguous", "near over own", "far over own",
    "near over own, FPR95", "far over own, FPR95",
)  # fmt: skip
OTHERS = {
    "AdamW: entropy": ("adamw", "entropy"),
    "ensemble of 4 AdamW: information": ("ensemble", "information"),
    "IVON, Kronecker: information": ("ivon_kronecker", "information"),
    "IVON, Kronecker: leverage": ("ivon_kronecker", "leverage"),
    "AdamW, pooled state: Mahalanobis distance": ("distance", "distance"),
}
Records = list[dict[str, Any]]


def _area(record: dict[str, Any], predictor: str, score: str, column: str) -> float:
    """AUROC, NaN where the run does not have the predictor."""
    found = record["scores"].get(predictor)
    return math.nan if found is None else found["separation"][score][column]


def left_table(records: Records) -> str:
    """What the share separates, mean over tasks and seeds; the distance of the same runs below."""
    rows = []
    for trained, who in TRAINED.items():
        for kind, what in KINDS.items():
            cells = [mean([_area(r, f"{trained}_{kind}", "left", c) for r in records]) for c in COLUMNS]
            rows.append([who, what, *(number(cell, 3) for cell in cells)])
    cells = [mean([_area(r, "distance", "distance", c) for r in records]) for c in COLUMNS]
    rows.append(["AdamW", "Mahalanobis distance of the pooled state", *(number(cell, 3) for cell in cells)])
    return markdown(["trained by", "share left under", *COLUMNS], rows)


def left_differences(records: Records, main: Records) -> str:
    """Share left under all tensors at once minus other detectors, AUROC, paired by task and seed.

    Raises:
        ValueError: A distance that both have differs, so that their AdamW runs are not the same.
    """
    others = {(r["task"], r["seed"]): r for r in main}
    for record in records:
        _same_distance(record, others.get((record["task"], record["seed"]), record))
    tasks = list(dict.fromkeys(r["task"] for r in records))
    rows = []
    for trained, who in TRAINED.items():
        for text, place in OTHERS.items():
            cells = []
            for column in ("near over own", "far over own"):
                differences = [
                    [
                        _area(r, f"{trained}_leading", "left", column)
                        - _area(others[r["task"], r["seed"]], *place, column)
                        for r in records
                        if r["task"] == task and (r["task"], r["seed"]) in others
                    ]
                    for task in tasks
                ]
                cells.append(interval(np.array([mean(own) for own in differences]), 3))
            rows.append([who, text, *cells])
    return markdown(["share left of", "minus", "near", "far"], rows)


def _same_distance(record: dict[str, Any], other: dict[str, Any]) -> None:
    """One table holds one AdamW run of a task and seed."""
    for column in ("near over own", "far over own"):
        one, two = (_area(r, "distance", "distance", column) for r in (record, other))
        if abs(one - two) > 1e-3:
            raise ValueError(
                f"{record['task']}, seed {record['seed']}: the distance has {one:.4f} and {two:.4f}; run it again"
            )


def left_practice(records: Records) -> str:
    """Practice rows over own rows, by multiples of the prior precision, mean over tasks."""
    rows = [
        [
            f"{factor:g}",
            *(
                number(mean([r["scores"][f"{t}_{kind}, {factor:g}"]["near over own"] for r in records]), 3)
                for t in TRAINED
                for kind in KINDS
            ),
        ]
        for factor in FACTORS
    ]
    return markdown(
        [
            "times the prior precision",
            *(f"{who}, {what}" for who in TRAINED.values() for what in KINDS.values()),
        ],
        rows,
    )


def joined(records: Records) -> Records:
    """Records of one task and seed, one a trainer, as one."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for record in records:
        whole = found.setdefault(
            (record["task"], record["seed"]), {**record, "facts": {}, "scores": {}, "cpu_seconds": 0.0}
        )
        whole["facts"] |= record["facts"]
        whole["scores"] |= record["scores"]
        whole["cpu_seconds"] += record["cpu_seconds"]
    return list(found.values())


def share_table(records: Records, before: Records) -> str:
    """Foreign over own rows by task, mean over seeds: at the directions' own precision, at the prior, the distance."""
    at_prior = {(r["task"], r["seed"]): r for r in before}
    found = {}
    for task in dict.fromkeys(r["task"] for r in records):
        own = [r for r in records if r["task"] == task]
        old = [at_prior[r["task"], r["seed"]] for r in own if (r["task"], r["seed"]) in at_prior]
        sources = (
            *((own, "ivon_leading", "left"), (own, "laplace_leading", "left")),
            *((old, "ivon_leading", "left"), (own, "distance", "distance")),
        )
        found[task, len(own)] = [
            mean([_area(r, who, score, column) for r in some])
            for column in ("near over own", "far over own")
            for some, who, score in sources
        ]
    found["mean of tasks", sum(runs for _, runs in found)] = [
        mean(c) for c in zip(*found.values(), strict=True)
    ]
    rows = [[task, str(runs), *(number(cell, 3) for cell in cells)] for (task, runs), cells in found.items()]
    kinds = ("IVON auto", "AdamW", "IVON auto, at its prior", "distance")
    heads = [f"{side}: {kind}" for side in ("near", "far") for kind in kinds]
    return markdown(["task", "runs", *heads], rows)


def share_practice(records: Records) -> str:
    """Practice rows over own rows, by multiples of tr F^2 / tr F, by task and trainer."""
    tasks = list(dict.fromkeys(r["task"] for r in records))

    def cell(task: str, name: str) -> str:
        own = [r["scores"].get(name, {}).get("near over own", math.nan) for r in records if r["task"] == task]
        return number(mean(own), 3)

    rows = [
        [name, *(cell(task, f"{trained}, {name}") for trained in TRAINED for task in tasks)]
        for name in [*(f"{factor:g}" for factor in MULTIPLES), "prior"]
    ]
    rows.append(["distance", *["—"] * len(tasks), *(cell(task, "distance") for task in tasks)])
    heads = [f"{who}, {task}" for who in TRAINED.values() for task in tasks]
    return markdown(["times tr F² / tr F", *heads], rows)
