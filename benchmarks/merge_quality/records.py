"""The JSON files of this benchmark as one record per set of adapters, and means over them."""

import math
from typing import Any

import numpy as np

__all__ = [
    "FAMILIES",
    "OURS",
    "REFERENCES",
    "Records",
    "common_arms",
    "differences",
    "family",
    "joined",
    "mean",
    "scalars",
    "value",
]

OURS = "gradient matching, Kronecker"
REFERENCES = ("no adapter", "individual adapters", "joint training")
FAMILIES = {
    ("mixed", 4, "shared", "ivon"): "four different tasks, one start of A, IVON",
    ("mixed", 4, "independent", "ivon"): "four different tasks, independent starts, IVON",
    ("mixed", 4, "shared", "adamw"): "four different tasks, one start of A, AdamW",
    ("mixed", 4, "independent", "adamw"): "four different tasks, independent starts, AdamW",
    ("mixed", 8, "independent", "ivon"): "eight different tasks, independent starts, IVON",
    ("mixed", 12, "independent", "ivon"): "twelve different tasks, independent starts, IVON",
    ("domains", 4, "shared", "ivon"): "four domains of one task, one start of A, IVON",
    ("domains", 4, "independent", "ivon"): "four domains of one task, independent starts, IVON",
}
"""What distinguishes a family of units -> its title."""
Records = list[dict[str, Any]]


def joined(main: Records, more: Records, joint: Records, baselines: Records | None = None) -> Records:
    """One record per set of adapters: the main methods, the others where they were run, and joint training."""
    key = ("family", "count", "gauge", "optimizer", "seed")
    others = {tuple(record[k] for k in key): record for record in more}
    weighed = {tuple(record[k] for k in key): record for record in baselines or ()}
    ceilings = {tuple(record[k] for k in ("family", "count", "seed")): record for record in joint}
    found = []
    for record in main:
        other = others.get(tuple(record[k] for k in key), {})
        arms = {**record["arms"], **other.get("arms", {})}
        extra_arms = weighed.get(tuple(record[k] for k in key), {}).get("arms", {})
        arms |= {arm: scores for arm, scores in extra_arms.items() if "best" in scores}
        ceiling = ceilings.get((record["family"], record["count"], record["seed"]))
        if ceiling is not None:
            arms["joint training"] = {"default": ceiling["scores"]}
        seconds = record["cpu_seconds"] + other.get("cpu_seconds", 0.0)
        extra = {"conflict": other["conflict"]} if "conflict" in other else {}
        found.append({**record, **extra, "arms": arms, "cpu_seconds": seconds})
    return found


def family(records: Records, key: tuple[Any, ...]) -> Records:
    """Records of one family, by seed."""
    found = [r for r in records if (r["family"], r["count"], r["gauge"], r["optimizer"]) == key]
    return sorted(found, key=lambda record: record["seed"])


def value(record: dict[str, Any], arm: str, kind: str, metric: str, over: str = "tasks") -> float:
    """Mean over the tasks of one unit, or the worst; NaN where there is no such arm.

    Args:
        record: One unit.
        arm: Name of the arm.
        kind: ``default`` or ``best`` scalar; an arm without a scalar has only the first.
        metric: ``accuracy``, ``worst`` (accuracy of the worst task), ``nll``, ``ece`` or ``nll_tempered``.
        over: ``tasks`` or ``unseen``.
    """
    scores = record["arms"].get(arm, {})
    by_task = scores.get(kind, {})
    if not by_task or any(task not in by_task for task in record[over]) or not record[over]:
        return math.nan
    name = "accuracy" if metric == "worst" else metric
    values = [by_task[task].get(name, math.nan) for task in record[over]]
    return float(min(values) if metric == "worst" else np.mean(values))


def mean(records: Records, *where: str) -> float:
    """Mean over sets of adapters."""
    values = [value(record, *where) for record in records]
    return float(np.mean(values)) if values and not np.isnan(values).any() else math.nan


def scalars(records: Records, arm: str) -> str:
    """Best scalars of an arm; ``<=`` and ``>=`` where it is an end of what was tried."""
    found: dict[float, str] = {}
    for scores in (record["arms"].get(arm, {}) for record in records):
        if "scalar" not in scores:
            continue
        tried = [float(scalar) for scalar in scores.get("validation_nll", {})]
        best = scores["scalar"]
        sign = "≤ " if tried and best == min(tried) else "≥ " if tried and best == max(tried) else ""
        found[best] = f"{sign}{best:g}"
    return ", ".join(found[best] for best in sorted(found)) or "—"


def common_arms(records: Records) -> list[str]:
    """Arms that every record has, so that all rows of a table are means over the same sets."""
    longest = max((record["arms"] for record in records), key=len)
    return [arm for arm in longest if all(arm in record["arms"] for record in records)]


def differences(records: Records, arm: str, kind: str, metric: str, over: str = "tasks") -> np.ndarray:
    """Ours at its default minus an arm, one number per set of adapters."""
    pairs = [(value(r, OURS, "default", metric, over), value(r, arm, kind, metric, over)) for r in records]
    return np.array([ours - other for ours, other in pairs])
