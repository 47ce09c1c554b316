"""Names of the tables, and numbers of records as cells."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.closed_world.scores import CHOSEN
from benchmarks.closed_world.ways import METHODS as WAYS
from benchmarks.readme_table import row, t_quantile

SCORES = {
    "max_probability": "max. probability", "entropy": "entropy", "mutual_information": "information",
    "entropy_base": "entropy × base", "mutual_information_base": "information × base",
}  # fmt: skip
ABSTENTION = {
    "max_probability": "max. probability", "max_probability, mutual_information": "and information",
    "max_probability, entropy_base": "and entropy × base",
    "max_probability, mutual_information_base": "and information × base",
    f"max_probability{CHOSEN}": f"max. probability{CHOSEN}",
    f"max_probability, mutual_information_base{CHOSEN}": f"and information × base{CHOSEN}",
}  # fmt: skip
ABSTENTION_HEADER = (
    "known answered, %",
    "of them wrong, %",
    "unknown answered, %",
    "near misses answered, %",
)
QUESTIONS = (
    "unknown vs seen", "unknown vs clean", "unknown vs ambiguous", "unknown vs base", "near miss vs seen",
    "near miss vs ambiguous",
)  # fmt: skip
GROUPS = ("clean", "ambiguous", "base", "unknown", "near_miss")
METHODS = {name: way.shown for name, way in WAYS.items()}
"""Merge -> name in the tables."""
SOURCES = {"adamw": "AdamW", "ivon": "IVON"}
"""Who trained the adapters of a merge -> name in the tables."""


def abstention_lines(head: Sequence[str], found: Sequence[dict[str, float] | None]) -> list[list[str]]:
    """One line of means over what has a threshold, or none: :data:`ABSTENTION_HEADER`, and how many have one."""
    some = [one for one in found if one and one["coverage"] > 0]
    keys = ("coverage", "risk", "unknown_answered", "near_miss_answered")
    cells = [number(mean([one[key] for one in some]), 1, 100.0) for key in keys]
    return [[*head, *cells, f"{len(some)} of {len(found)}"]] if some else []


def interval(numbers: np.ndarray, digits: int = 3, scale: float = 1.0) -> str:
    """Mean of the known values and its 95 % interval."""
    known = scale * numbers[~np.isnan(numbers)]
    if len(known) < 2:
        return "—"
    half = t_quantile(len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return (
        f"{known.mean():+.{digits}f} [{known.mean() - half:+.{digits}f}, {known.mean() + half:+.{digits}f}]"
    )


def dig(value: Any, *keys: str) -> float:
    """A number deep inside a record, NaN where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return math.nan if value is None else float(value)


def mean(numbers: Any) -> float:
    """Mean of the known numbers."""
    known = np.asarray(numbers, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def number(value: float, digits: int = 3, scale: float = 1.0) -> str:
    """A number as a cell."""
    return "—" if math.isnan(value) else f"{scale * value:.{digits}f}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join([row(*header), "|" + "---|" * len(header), *(row(*line) for line in lines)])
