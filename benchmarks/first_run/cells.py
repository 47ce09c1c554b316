"""Numbers of the first run from its JSON files, and how a table shows them.

Over seeds: mean ± s.e., s.e. = sd / sqrt(n) with n - 1 in the sd. Of n pairs: mean difference with the 95 % interval
mean ± t(.975, n - 1) s.e.; of ratios the same on logarithms. What has no file is NaN and left out of n.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.readme_table import t_quantile

DASH, NAN = "—", float("nan")
ECE = "ece_15_equal_width"
OPTIMIZERS = {"adamw": "AdamW", "ivon": "IVON"}
ADAMW, MEAN, DRAWS = ("adamw", "mean"), ("ivon", "mean"), ("ivon", "samples")
MODELS = {"AdamW": ADAMW, "IVON, mean": MEAN, "IVON, draws": DRAWS}
"""Optimizer and predictor behind each kind of row."""

Array = NDArray[np.float64]


class Results:
    """Every JSON file under one folder, by its path without the ending: ``sentiment/train_books_ivon_0``."""

    def __init__(self, root: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {
            path.relative_to(root).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(root.rglob("*.json"))
        }

    def seeds(self, part: str) -> list[int]:
        """Seeds that any file of a part has, or those of the plan when there is no file."""
        found = {int(name.rsplit("_", 1)[1]) for name in self.records if name.startswith(f"{part}/")}
        return sorted(found or {0, 1, 2})

    def metric(
        self, name: str, predictor: str, metric: str, *, group: str = "all", model: str = "", field: str = "value"
    ) -> float:  # fmt: skip
        """One number of the evaluation ``part/model``, NaN without a file.

        Args:
            name: Part and model, ``sentiment/books_ivon_0``.
            predictor: As in ``results.json``.
            metric: As in ``results.json``.
            group: Test set; ``all`` is all of them.
            model: Another model of the same evaluation, such as its base.
            field: ``value``, ``low``, ``high``, or the ``floor`` of a calibration error.

        Raises:
            ValueError: The number is there and not defined, which no mean may pass over.
        """
        part, own = name.split("/")
        wanted = {"model": model or own, "predictor": predictor, "group": group}
        for row in self.records.get(f"{part}/eval_{own}", {}).get("output", {}).get("rows", []):
            if wanted.items() <= row.items():
                value = row["metrics"][metric][field]
                if value is None:
                    raise ValueError(
                        f"{metric} of {name} ({predictor}, {group}) is null; look at its records"
                    )
                return float(value)
        return NAN

    def cost(self, name: str, key: str) -> float:
        """Seconds or bytes of the training run ``part/model``, NaN without it."""
        record = self.records.get(name.replace("/", "/train_"), {})
        source = record.get("output", {}).get("train_log.json", {}) if key == "train_seconds" else record
        return float(source.get(key) or NAN)


def known(values: Any) -> Array:
    """The values that are there, flat."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[~np.isnan(flat)]


def standard_error(values: Array) -> float:
    """Sd / sqrt(n), NaN for fewer than two values."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else NAN


def interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % Student interval over independent values; NaN where too few leave it undefined."""
    flat = known(values)
    if not len(flat):
        return NAN, NAN, NAN
    mean = float(flat.mean())
    half = t_quantile(len(flat) - 1) * standard_error(flat) if len(flat) > 1 else NAN
    return mean, mean - half, mean + half


def mean_cell(values: Any, digits: int = 3, factor: float = 1) -> str:
    """Mean ± standard error; a single value stands alone, none is a dash."""
    flat = factor * known(values)
    if not len(flat):
        return DASH
    error = f" ± {standard_error(flat):.{digits}f}" if len(flat) > 1 else ""
    return f"{flat.mean():.{digits}f}{error}"


def difference_cell(values: Any, digits: int = 3, factor: float = 1) -> str:
    """Mean difference with its sign, and its interval."""
    return _with_interval([factor * number for number in interval(values)], f"+.{digits}f")


def ratio_cell(ratios: Array) -> str:
    """Geometric mean of paired ratios, and its interval."""
    return _with_interval([math.exp(number) for number in interval(np.log(ratios))], ".2f")


def _with_interval(numbers: Sequence[float], form: str) -> str:
    """``mean [low, high]``, as far as they are defined."""
    mean, low, high = (f"{number:{form}}".replace("-", "−") for number in numbers)
    if math.isnan(numbers[0]):
        return DASH
    return mean if math.isnan(numbers[1]) else f"{mean} [{low}, {high}]"


def count(values: Any) -> str:
    """How many values there are."""
    return str(len(known(values)))


def ece_cell(values: Array, floors: Array) -> str:
    """Calibration error ± s.e., with the mean floor in brackets."""
    return f"{mean_cell(values)} ({mean_cell(known(floors).mean())})" if len(known(values)) else DASH


def markdown(header: str, rows: Sequence[Sequence[str]], labels: int) -> str:
    """Table under ``a | b | c`` with ``labels`` columns to the left and numbers to the right."""
    titles = header.split(" | ")
    rule = ["---"] * labels + ["---:"] * (len(titles) - labels)
    return "\n".join("| " + " | ".join(row) + " |" for row in (titles, rule, *rows)) + "\n"
