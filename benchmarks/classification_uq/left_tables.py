"""Tables of the share of the prior variance that the data left: practice and test rows, beside other detectors."""

import math
from typing import Any

import numpy as np

from benchmarks.classification_uq.left import FACTORS
from benchmarks.classification_uq.share import MULTIPLES
from benchmarks.readme_table import interval, markdown, mean, number, with_half_width

__all__ = [
    "declined_table",
    "joined",
    "left_differences",
    "left_practice",
    "left_table",
    "share_practice",
    "share_table",
]

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
    """What the share separates, mean over tasks' means ± over tasks; the distance of the same runs below."""
    sources = {
        (who, what): (f"{trained}_{kind}", "left")
        for trained, who in TRAINED.items()
        for kind, what in KINDS.items()
    }
    sources["AdamW", "Mahalanobis distance of the pooled state"] = ("distance", "distance")
    rows = [
        [*names, *(with_half_width(_by_task(records, *source, column)) for column in COLUMNS)]
        for names, source in sources.items()
    ]
    return markdown(["trained by", "share left under", *COLUMNS], rows)


def _by_task(records: Records, predictor: str, score: str, column: str) -> np.ndarray:
    """Mean over the seeds of every task."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["task"], []).append(_area(record, predictor, score, column))
    return np.array([mean(own) for own in found.values()])


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
    """Foreign over own rows by task: at the directions' own precision, at the prior, the distance.

    ± is over the seeds of a task, and over tasks in the last line.
    """
    tasks = list(dict.fromkeys(r["task"] for r in records))
    pairs = {(r["task"], r["seed"]) for r in records}
    old = [r for r in before if (r["task"], r["seed"]) in pairs]
    sources = (
        (records, "ivon_leading", "left"),
        (records, "laplace_leading", "left"),
        (old, "ivon_leading", "left"),
        (records, "distance", "distance"),
    )
    columns = [(*source, column) for column in ("near over own", "far over own") for source in sources]
    rows = []
    for task in tasks:
        own = [
            np.array([_area(r, who, score, column) for r in some if r["task"] == task])
            for some, who, score, column in columns
        ]
        rows.append([task, str(len(own[0])), *map(with_half_width, own)])
    whole = [with_half_width(_by_task(some, who, score, column)) for some, who, score, column in columns]
    rows.append(["mean of tasks", str(len(records)), *whole])
    kinds = ("IVON auto", "AdamW", "IVON auto, at its prior", "distance")
    heads = [f"{side}: {kind}" for side in ("near", "far") for kind in kinds]
    return markdown(["task", "runs", *heads], rows)


def declined_table(records: Records) -> str:
    """Rows above the 95 % quantile of the validation rows, %, by task ± over seeds, last over tasks."""
    tasks = list(dict.fromkeys(r["task"] for r in records))
    who = {"IVON auto": "ivon_leading", "AdamW": "laplace_leading", "distance": "distance"}
    rows = []
    for task in [*tasks, None]:
        cells = []
        for column in ("clean", "near", "far"):
            for place in who.values():
                by = [
                    np.array([r["scores"][place]["declined"][column] for r in records if r["task"] == one])
                    for one in tasks
                ]
                own = np.array([one.mean() for one in by]) if task is None else by[tasks.index(task)]
                cells.append(with_half_width(own, 1, 100.0))
        rows.append([task or "mean of tasks", *cells])
    heads = [f"{column}: {name}" for column in ("clean", "near", "far") for name in who]
    return markdown(["task", *heads], rows)


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
