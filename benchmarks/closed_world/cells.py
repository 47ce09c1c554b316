"""Names of the tables, and numbers of records as cells."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.closed_world.ways import METHODS as WAYS
from benchmarks.readme_table import Records, row, t_quantile

PREDICTORS: dict[str, tuple[str, str]] = {
    "base model": ("base", "mean"),
    "AdamW": ("adamw", "mean"),
    "AdamW + temperature": ("adamw", "mean + temperature"),
    "AdamW, MC dropout, 8": ("dropout", "draws"),
    "AdamW, ensemble of 4": ("ensemble", "mixture"),
    "AdamW, Laplace, 8 draws": ("laplace", "draws"),
    "AdamW, Laplace, 8 draws, fitted width": ("laplace", "draws, fitted width"),
    "AdamW, Laplace, linearised": ("laplace", "linearised, independent"),
    "AdamW, Laplace, Kronecker": ("laplace", "linearised, Kronecker"),
    "AdamW, Laplace, full": ("laplace", "linearised, full"),
    "IVON, mean": ("ivon", "mean"),
    "IVON, mean + temperature": ("ivon", "mean + temperature"),
    "IVON, 8 draws": ("ivon", "draws"),
    "IVON, 8 draws, fitted width": ("ivon", "draws, fitted width"),
    "IVON, linearised": ("ivon", "linearised, independent"),
    "IVON, Kronecker": ("ivon", "linearised, Kronecker"),
    "IVON, full": ("ivon", "linearised, full"),
}
"""Name in the tables -> arm, predictor."""
SCORES = {
    "max_probability": "max. probability", "entropy": "entropy", "mutual_information": "information",
    "entropy_base": "entropy × base", "mutual_information_base": "information × base",
}  # fmt: skip
ABSTENTION = {
    "max_probability": "max. probability", "max_probability, mutual_information": "and information",
    "max_probability, entropy_base": "and entropy × base",
    "max_probability, mutual_information_base": "and information × base",
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


def worlds(records: Records) -> list[int]:
    """Worlds that have the AdamW arm."""
    return sorted(r["world"] for name, r in records.items() if name.startswith("main/adamw_"))


def values(records: Records, predictor: str, *keys: str) -> np.ndarray:
    """One number per world, mean over its two adapters; NaN where there is none."""
    arm, name = PREDICTORS[predictor]
    found = []
    for world in worlds(records):
        record = records.get(f"main/{arm}_{world}", {"scores": {}})
        found.append(mean([dig(scores.get(name), *keys) for scores in record["scores"].values()]))
    return np.array(found)


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


def with_half_width(numbers: np.ndarray, digits: int = 3, scale: float = 1.0) -> str:
    """Mean of the known values ± half of its 95 % interval."""
    known = scale * numbers[~np.isnan(numbers)]
    if len(known) < 2:
        return number(mean(known), digits)
    half = t_quantile(len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return f"{known.mean():.{digits}f} ± {half:.{digits}f}"


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
