"""Tables of what ``preview.py`` measured: predicted against measured losses, and what named weightings are worth."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.merge_quality.preview_cost import KINDS
from benchmarks.merge_quality.records import Records
from benchmarks.readme_table import interval, markdown, number
from vlora.posterior.ranks import spearman

__all__ = ["agreement_table", "choice_table", "rays_table", "seconds_table"]

FAMILIES = {"domains": "domains of one task", "mixed": "different tasks"}
METHODS = {"gradient_matching": "gradient matching", "task_arithmetic": "sum"}
ALL_ONES, ALL_MEAN = 6, 4
"""Rows of the weightings with equal weights of 1 and of 1/T."""


def agreement_table(records: Records) -> str:
    """Predicted against measured increase over the weightings of a set, means over tasks, intervals over sets."""
    rows = []
    for label, found, method in _groups(records):
        for split in ("train", "test"):
            kinds = ("increase", "quadratic by worth", "increase by h", "quadratic")
            measures = [
                np.array([_rank(r, method, split) for r in found]),
                *(np.array([_error(r, method, split, kind) for r in found]) for kind in kinds),
            ]
            covered = interval(100 * np.array([_covered(r, method, split) for r in found]), 0)
            rows.append([label, METHODS[method], split, *(interval(m, 2) for m in measures), covered])
    header = [
        "sets", "merge", "rows", "rank correlation", "error, worth known", "its square", "error, worth by h",
        "its square", "within 2 std, %",
    ]  # fmt: skip
    return markdown(header, rows)


def choice_table(records: Records) -> str:
    """What weightings are worth on test rows: mean NLL above the best of the thirty, nats, and accuracy below it."""
    rows = []
    for label, found, method in _groups(records):
        chosen: dict[str, Callable[[dict[str, Any]], tuple[float, float]]] = {
            "least average increase of the thirty": lambda r, m=method: _of_row(r, m, _least(r, m, False)),
            "least average by worth of the thirty": lambda r, m=method: _of_row(r, m, _least(r, m, True)),
            "best of the thirty on validation rows": lambda r, m=method: _of_row(r, m, _validated_best(r, m)),
            **{
                f"preview, {which}{' by worth' if 'worth' in label else ''}": (
                    lambda r, m=method, a=label, b=which: _of_named(r, m, a, b)
                )
                for label in ("named", "named by worth") for which in ("best average", "best worst task")
                if (label, which) != ("named by worth", "best worst task")
            },
            "all weights 1": lambda r, m=method: _of_row(r, m, ALL_ONES),
            "all weights 1/T": lambda r, m=method: _of_row(r, m, ALL_MEAN),
        }  # fmt: skip
        for name, take in chosen.items():
            values = np.array([take(r) for r in found])
            cells = [interval(values[:, 0], 3), interval(100 * values[:, 1], 1)]
            rows.append([label, METHODS[method], name, *cells])
    return markdown(["sets", "merge", "weighting", "NLL above the best", "accuracy, points"], rows)


def rays_table(records: Records) -> str:
    """The training loss on the way from an adapter to the merge with all weights 1, means over tasks and sets."""
    rows = []
    for label, found, method in _groups(records):
        tasks = [row for record in found for row in record["methods"][method]]
        means = {key: float(np.mean([row[key] for row in tasks])) for key in (*RAY, "measured")}
        both = means["slope"] + means["half_curvature"]
        cells = [
            *(means[key] for key in ("slope", "half_curvature")),
            both,
            means["measured"],
            means["quadratic"],
        ]
        rows.append([label, METHODS[method], *(number(cell, 3) for cell in cells)])
    header = ["sets", "merge", "slope", "half the curvature", "both", "measured increase", "q by h"]
    return markdown(header, rows)


RAY = ("slope", "half_curvature", "quadratic")


def seconds_table(records: Records) -> str:
    """CPU seconds of a preview, and how far off its reduced model was at five weightings."""
    rows = []
    for record in sorted(records, key=lambda r: r["order"]):
        seconds = [number(record["cpu"].get(kind, math.nan), 1) for kind in KINDS]
        change = [f"{record['check'][kind]:.0e}" for kind in ("increase", "std")]
        rows.append([record["case"], *seconds, *change])
    return markdown(["adapters and modules", *KINDS, "full solution changes an increase by", "std"], rows)


def _groups(records: Records) -> list[tuple[str, Records, str]]:
    found = []
    for family, label in FAMILIES.items():
        own = [r for r in records if r["family"] == family]
        found += [(label, own, method) for method in METHODS if own]
    return found


def _measured(record: dict[str, Any], method: str, split: str) -> np.ndarray:
    """Increase over the task's own adapter, nats. Shape ``(weightings, T)``."""
    own = np.array(record["own"][split]["nll"])
    return np.array(record["methods"][method]["measured"][split]["nll"]) - own


def _gain(record: dict[str, Any], split: str = "train") -> np.ndarray:
    """Nats that the adapters are worth."""
    return np.array(record["without"][split]["nll"]) - np.array(record["own"][split]["nll"])


def _predicted(record: dict[str, Any], method: str, kind: str) -> np.ndarray:
    """Increase in nats: by its square root or not, with the worth measured on training rows or by h."""
    found = record["methods"][method]
    if kind == "quadratic":
        return np.array(found["quadratic"])
    if kind == "quadratic by worth":
        return np.array(found["quadratic"]) / np.array(found["without"]) * _gain(record)
    scale = _gain(record) if kind == "increase" else np.array(found["without"])
    return np.array(found["increase"]) * scale


def _rank(record: dict[str, Any], method: str, split: str) -> float:
    """Spearman's correlation over the weightings, mean over tasks."""
    predicted, measured = _predicted(record, method, "increase"), _measured(record, method, split)
    pairs = zip(torch.from_numpy(predicted).unbind(1), torch.from_numpy(measured).unbind(1), strict=True)
    return float(np.mean([spearman(p.clone(), m.clone()) or 0.0 for p, m in pairs]))


def _error(record: dict[str, Any], method: str, split: str, kind: str) -> float:
    """Sum |predicted - measured| / sum |measured| of a task, mean over tasks."""
    predicted, measured = _predicted(record, method, kind), _measured(record, method, split)
    return float((np.abs(predicted - measured).sum(0) / np.abs(measured).sum(0)).mean())


def _covered(record: dict[str, Any], method: str, split: str) -> float:
    predicted, measured = _predicted(record, method, "increase"), _measured(record, method, split)
    std = np.array(record["methods"][method]["std"]) * _gain(record)
    return float((np.abs(predicted - measured) <= 2 * std).mean())


def _test(record: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    found = record["methods"][method]["measured"]["test"]
    return np.array(found["nll"]).mean(1), np.array(found["accuracy"]).mean(1)


def _of_row(record: dict[str, Any], method: str, row: int) -> tuple[float, float]:
    nll, accuracy = _test(record, method)
    best = int(nll.argmin())
    return nll[row] - nll[best], accuracy[row] - accuracy[best]


def _of_named(record: dict[str, Any], method: str, label: str, which: str) -> tuple[float, float]:
    nll, accuracy = _test(record, method)
    best = int(nll.argmin())
    own = record["methods"][method][label][which]["measured"]["test"]
    return float(np.mean(own["nll"])) - nll[best], float(np.mean(own["accuracy"])) - accuracy[best]


def _least(record: dict[str, Any], method: str, by_worth: bool) -> int:
    increase = np.array(record["methods"][method]["increase"])
    return int((increase * (_gain(record) if by_worth else 1.0)).mean(1).argmin())


def _validated_best(record: dict[str, Any], method: str) -> int:
    found = record["methods"][method]["measured"]["validation"]["nll"]
    return int(np.array(found).mean(1).argmin())
