"""Tables of the share of the prior variance that the data left: practice and test rows, beside other detectors."""

from typing import Any

import numpy as np

from benchmarks.classification_uq.left import FACTORS
from benchmarks.readme_table import interval, markdown, mean, number

__all__ = ["left_differences", "left_practice", "left_table"]

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
    return record["scores"][predictor]["separation"][score][column]


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
    """Share left under all tensors at once minus other detectors, AUROC, paired by task and seed."""
    others = {(r["task"], r["seed"]): r for r in main}
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
