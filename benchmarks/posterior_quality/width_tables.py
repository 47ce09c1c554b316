"""Tables of other widths and normalisations of the draws, on validation rows."""

from typing import Any

import numpy as np

from benchmarks.readme_table import interval, markdown, mean, number

__all__ = ["shapes_table", "ways_table"]

Records = list[dict[str, Any]]
DEFAULT = "default"
TRAINED = ("mean", "draws", "width", "linearised")
"""Predictors that every way of training has; others are shapes of the default's width."""
SHAPES = {
    "width": "h + mean of h / 2 (the default)",
    "ratio 3": "h + mean of h / 8",
    "ratio 10": "h + mean of h / 99",
    "ratio 30": "h + mean of h / 899",
    "per tensor, one ess": "h + mean of the tensor's h / 2",
    "per tensor, own ess": "the same, over the mean of the tensor's h",
    "tensor": "mean of the tensor's h alone",
    "equal": "the same for all entries",
}
"""Name of a shape -> its precision, up to a factor."""


def ways_table(records: Records) -> str:
    """What every way of training leaves and predicts, and its NLL less the default's, paired."""
    rows = []
    for way in sorted({record["way"] for record in records}, key=lambda name: (name != DEFAULT, name)):
        own = [record for record in records if record["way"] == way]
        share, std = (
            mean([record["facts"]["prior_share"] for record in own]),
            mean([record["facts"]["std_quantiles"][1] for record in own]),
        )
        accuracy = 100 * mean([record["scores"]["mean"]["accuracy"] for record in own])
        losses = [mean([record["scores"][name]["nll"] for record in own]) for name in TRAINED]
        gaps = [
            "" if way == DEFAULT else interval(_gaps(records, (way, name), (DEFAULT, name), "nll"), 3)
            for name in TRAINED
        ]
        cells = [f"{loss:.3f} {gap}".strip() for loss, gap in zip(losses, gaps, strict=True)]
        rows.append([way, number(share, 2), number(std, 3), number(accuracy, 1), *cells])
    header = [
        "trained with", "prior's share", "median std", "accuracy of the mean, %", "mean, NLL", "draws, NLL",
        "fitted width, NLL", "linearised, NLL",
    ]  # fmt: skip
    return markdown(header, rows)


def shapes_table(records: Records) -> str:
    """One trained posterior drawn with other shapes of its width, each with a fitted factor."""
    rows = []
    own = [record for record in records if record["way"] == DEFAULT]
    for name, precision in SHAPES.items():
        factor = np.exp(np.mean([np.log(record["chosen"][name]) for record in own]))
        cells = [
            number(mean([record["scores"][name][metric] for record in own]), 3)
            for metric in ("nll", "ece", "aurc")
        ]
        base = (DEFAULT, "width")
        gaps = [
            "" if name == "width" else interval(_gaps(records, (DEFAULT, name), base, metric), 3)
            for metric in ("nll", "aurc")
        ]
        rows.append([precision, number(factor, 2), *cells, *gaps])
    header = [
        "precision, up to a factor", "fitted factor", "NLL", "ECE", "AURC", "NLL − default", "AURC − default",
    ]  # fmt: skip
    return markdown(header, rows)


def _gaps(records: Records, first: tuple[str, str], second: tuple[str, str], metric: str) -> np.ndarray:
    """Mean over seeds of the paired difference between two ``(way, predictor)`` for each task."""
    by = {(r["task"], r["seed"], r["way"]): r["scores"] for r in records}
    found = []
    for task in sorted({record["task"] for record in records}):
        pairs = [
            (by[task, seed, first[0]], by[task, seed, second[0]])
            for seed in sorted({record["seed"] for record in records})
            if (task, seed, first[0]) in by and (task, seed, second[0]) in by
        ]
        found.append(mean([a[first[1]][metric] - b[second[1]][metric] for a, b in pairs]))
    return np.array(found)
