"""The tables of the first run, made from its JSON files and from nothing else.

    python benchmarks/first_run/table.py [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows it and leaves the file alone.

Over seeds: mean ± s.e., s.e. = sd / sqrt(n) with n - 1 in sd. Of n pairs: mean difference with its 95 % interval
mean ± t(.975, n - 1) s.e. Ratios: the same on logarithms. A run without a file is NaN and left out of the n that
every row states; a row without any run shows dashes.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
START, END = "<!-- table:start -->", "<!-- table:end -->"
DASH, NAN = "—", float("nan")
TRAINED = ("books", "dvd", "electronics", "kitchen_housewares")
UNSEEN = ("MR", "camera_photo", "health_personal_care", "imdb", "music", "software", "sports_outdoors", "video")
METHODS = ("linear", "task_arithmetic", "gradient_matching")
ECE = "ece_15_equal_width"
PREDICTED = (("AdamW", "adamw", "mean"), ("IVON, mean", "ivon", "mean"), ("IVON, draws", "ivon", "samples"))
NAMES = {"adamw": "AdamW", "ivon": "IVON"}
TEXTS = ("tinystories", "gsm8k")
BASES = {"none": "float32", "8bit": "8-bit"}

Array = NDArray[np.float64]


class Results:
    """Every JSON file under one folder, by its path without the ending: ``sentiment/train_books_ivon_0``."""

    def __init__(self, root: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {
            path.relative_to(root).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(root.rglob("*.json"))
        }

    def seeds(self, part: str) -> list[int]:
        """Seeds that any file of a part has, or those of the plan when there is none."""
        names = [name for name in self.records if name.startswith(f"{part}/")]
        return sorted({int(name.rsplit("_", 1)[1]) for name in names}) or [0, 1, 2]

    def metric(
        self, name: str, predictor: str, metric: str, *, group: str = "all", model: str = "", field: str = "value"
    ) -> float:
        """One number of an evaluation; NaN without it, infinity for a mean with infinite items.

        Args:
            name: ``part/model`` of the evaluation.
            predictor: ``mean``, ``samples`` or one of them with ``+temperature``.
            metric: Name in ``results.json``.
            group: Test set; ``all`` is all of them.
            model: Which model of the evaluation; its own name if empty.
            field: ``value``, or ``floor`` of a calibration error.
        """
        part, own = name.split("/")
        wanted = {"model": model or own, "predictor": predictor, "group": group}
        for row in self.records.get(f"{part}/eval_{own}", {}).get("output", {}).get("rows", []):
            if wanted.items() <= row.items() and metric in row["metrics"]:
                entry = row["metrics"][metric]
                empty = math.inf if entry.get("infinite") else NAN
                return empty if entry[field] is None else float(entry[field])
        return NAN

    def cost(self, name: str, key: str) -> float:
        """Seconds or bytes of one training run; ``train_seconds`` is the loop's own clock, inside the process."""
        part, own = name.split("/")
        record = self.records.get(f"{part}/train_{own}", {})
        source = record.get("output", {}).get("train_log.json", {}) if key == "train_seconds" else record
        return float(source.get(key) or NAN)


def known(values: Any) -> Array:
    """The values that are there, flat."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[~np.isnan(flat)]


def mean_cell(values: Any, digits: int = 3, factor: float = 1.0) -> str:
    """Mean ± standard error; a single value stands alone, none is a dash."""
    flat = factor * known(values)
    if not np.isfinite(flat).all():
        return "∞"
    if len(flat) < 2:
        return f"{flat[0]:.{digits}f}" if len(flat) else DASH
    return f"{flat.mean():.{digits}f} ± {flat.std(ddof=1) / math.sqrt(len(flat)):.{digits}f}"


def interval(values: Any) -> tuple[float, float, float]:
    """Mean and 95 % Student interval of independent values; NaN where fewer than two leave it undefined."""
    flat = known(values)
    if len(flat) < 2 or not np.isfinite(flat).all():
        return (float(flat.mean()) if len(flat) else NAN), NAN, NAN
    half = t_quantile(len(flat) - 1) * float(flat.std(ddof=1)) / math.sqrt(len(flat))
    return float(flat.mean()), float(flat.mean()) - half, float(flat.mean()) + half


def t_quantile(df: int) -> float:
    """.975 quantile of Student's t: bisection on the integral of its density from 0."""
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        x = np.linspace(0.0, middle, 4001)
        mass = math.exp(log_scale) * np.trapezoid((1 + x * x / df) ** (-(df + 1) / 2), x)
        low, high = (middle, high) if mass < 0.475 else (low, middle)
    return low


def difference_cell(values: Any, digits: int = 3, factor: float = 1.0) -> str:
    """Mean difference with its sign, and the interval."""
    mean, low, high = (factor * number for number in interval(values))
    if not math.isfinite(mean):
        return DASH
    text = [f"{number:+.{digits}f}".replace("-", "−") for number in (mean, low, high)]
    return text[0] if math.isnan(low) else f"{text[0]} [{text[1]}, {text[2]}]"


def ratio_cell(above: Any, below: Any) -> str:
    """Geometric mean of paired ratios, and the interval."""
    mean, low, high = (math.exp(number) for number in interval(np.log(above) - np.log(below)))
    if math.isnan(mean):
        return DASH
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int) -> str:
    """Markdown table with its first ``labels`` columns to the left and numbers to the right."""
    rule = ["---"] * labels + ["---:"] * (len(header) - labels)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def own(
    results: Results, optimizer: str, predictor: str, metric: str, *, field: str = "value", domain: str = ""
) -> Array:
    """Adapters on their own domains, ``(seeds, 4)``; of one domain, ``(seeds, 1)``."""
    domains = [domain] if domain in TRAINED else TRAINED
    names = [[f"sentiment/{d}_{optimizer}_{s}" for d in domains] for s in results.seeds("sentiment")]
    return np.array([[results.metric(n, predictor, metric, field=field) for n in row] for row in names])


def merged(
    results: Results, method: str, optimizer: str, predictor: str, metric: str, domains: Sequence[str]
) -> Array:
    """Mean over test sets of one merge per seed, ``(seeds,)``; of ``own`` where the four have their own adapter."""
    if method == "own":
        grid = own(results, optimizer, predictor, metric)
        return grid.mean(axis=1) if domains == TRAINED else np.full(len(grid), NAN)
    names = [f"sentiment/{method}_{optimizer}_{s}" for s in results.seeds("sentiment")]
    grid = [[results.metric(n, predictor, metric, group=d) for d in domains] for n in names]
    return np.array(grid).mean(axis=1)


def individual_table(results: Results) -> str:
    """Adapters on their own domains."""
    header = ("test set", "model", "accuracy, %", "NLL", "NLL tempered", "temperature", "Brier", "ECE (floor)", "seeds")
    rows = []
    for domain in (*TRAINED, "mean of the four"):
        for label, optimizer, predictor in INDIVIDUAL:

            def get(metric: str, after: str = "", field: str = "value", *, at=(domain, optimizer, predictor)) -> Array:
                return own(results, at[1], at[2] + after, metric, field=field, domain=at[0]).mean(axis=1)

            tempered = [mean_cell(get("nll", TEMPERED)), mean_cell(get("temperature", TEMPERED), 2)]
            rows.append([domain, label, mean_cell(get("accuracy"), 1, 100), mean_cell(get("nll")), *tempered])
            rows[-1] += [mean_cell(get("brier")), ece_cell(get(ECE), get(ECE, "", "floor")), count(get("nll"))]
    return table(header, rows, 2)
