"""Cells of the tables of silence, before and after merging."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.readme_table import mean, with_half_width

__all__ = ["silence"]


def silence(runs: Sequence[tuple[str, dict[str, Any]]], risk: float, columns: Sequence[str]) -> list[str]:
    """Runs that have a threshold, those of them over the limit, and means of columns in per cent.

    ``±`` is over the means of the units (tasks, or pairs of merged domains); error rates are of those that answer.

    Args:
        runs: Unit and the record of its threshold, one a run.
        risk: The limit.
        columns: Of the record.

    Returns:
        Cells; none without runs.
    """
    if not runs:
        return []
    answering = [run for _, run in runs if run["answered test"] > 0]
    over = sum(run["risk test"] > risk for run in answering)
    units = list(dict.fromkeys(unit for unit, _ in runs))
    means = [
        np.array([mean([_known(run, column) for own, run in runs if own == unit]) for unit in units])
        for column in columns
    ]
    return [
        f"{len(answering)} of {len(runs)}",
        str(over),
        *(with_half_width(own, 1, 100.0) for own in means),
    ]


def _known(run: dict[str, Any], column: str) -> float:
    """A number of a run, NaN where there is none."""
    found = run.get(column)
    return math.nan if found is None else float(found)
