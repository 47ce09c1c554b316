"""Tables of the merged posteriors, from the records of ``run merge``; a unit is a domain of a pair, mean over seeds."""

import math
from typing import Any

import numpy as np

from benchmarks.readme_table import interval, markdown

__all__ = ["by_domain", "merge_differences", "merge_table"]

PREDICTORS = {
    "mean": "mean", "tempered": "mean + temperature", "linearised": "linearised", "kronecker": "linearised, Kronecker",
}  # fmt: skip
QUALITY = ("accuracy", "nll", "ece", "auroc_correct", "aurc")
GRADIENT = "gradient matching, Kronecker"
DIFFERENCES = {
    "gradient matching − own adapter, both Kronecker": ((GRADIENT, "kronecker"), ("own adapter", "kronecker")),
    "sum − own adapter, both Kronecker": (("sum", "kronecker"), ("own adapter", "kronecker")),
    "mean − own adapter, both Kronecker": (("mean", "kronecker"), ("own adapter", "kronecker")),
    "gradient matching: Kronecker − its mean": ((GRADIENT, "kronecker"), (GRADIENT, "mean")),
    "gradient matching: Kronecker − its mean + temperature": ((GRADIENT, "kronecker"), (GRADIENT, "tempered")),
    "sum: Kronecker − its mean": (("sum", "kronecker"), ("sum", "mean")),
    "sum: Kronecker − its mean + temperature": (("sum", "kronecker"), ("sum", "tempered")),
}  # fmt: skip
"""Row -> adapter and predictor, less another's."""
Records = list[dict[str, Any]]


def by_domain(records: Records, adapter: str, predictor: str, *path: str) -> np.ndarray:
    """Mean over seeds for each domain of each pair."""
    found: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        for domain in record["pair"]:
            value: Any = record["scores"][domain][adapter]["predictors"][predictor]
            for key in path:
                value = value[key]
            found.setdefault((*record["pair"], domain), []).append(float(value))
    return np.array([np.mean(values) for values in found.values()])


def foreign(records: Records, adapter: str, predictor: str, which: str) -> np.ndarray:
    """AUROC of foreign over own rows: by entropy of a mean, by information of a posterior."""
    return by_domain(records, adapter, predictor, "separation", _score(predictor), f"{which} over clean")


def leverage(records: Records, adapter: str, predictor: str, which: str) -> float:
    """Mean AUROC of foreign over own rows by the leverage, NaN for predictors that have none."""
    if predictor != "kronecker":
        return math.nan
    return by_domain(records, adapter, predictor, "separation", "leverage", f"{which} over clean").mean()


def merge_table(records: Records) -> str:
    """Domains under their own adapter, the other's and the merges; foreign rows by entropy or information."""
    rows = []
    for adapter in next(iter(records[0]["scores"].values())):
        for predictor, text in PREDICTORS.items():
            cells = [by_domain(records, adapter, predictor, "quality", key).mean() for key in QUALITY]
            cells += [foreign(records, adapter, predictor, which).mean() for which in ("near", "far")]
            cells += [leverage(records, adapter, predictor, which) for which in ("near", "far")]
            shown = [f"{100 * cells[0]:.1f}", *("—" if math.isnan(c) else f"{c:.3f}" for c in cells[1:])]
            rows.append([adapter, text, *shown])
    header = ["accuracy, %", "NLL", "ECE", "AUROC correct", "AURC", "near over own", "far over own"]
    header += ["near, leverage", "far, leverage"]
    return markdown(["adapter", "predictor", *header], rows)


def merge_differences(records: Records) -> str:
    """Merged less single, and the linearised posterior less its mean."""
    rows = []
    for name, (first, second) in DIFFERENCES.items():
        found = [
            by_domain(records, *first, "quality", key) - by_domain(records, *second, "quality", key)
            for key in ("nll", "ece", "aurc")
        ]
        found += [foreign(records, *first, s) - foreign(records, *second, s) for s in ("near", "far")]
        rows.append([name, *(interval(own, 3) for own in found)])
    return markdown(["difference", "NLL", "ECE", "AURC", "near over own", "far over own"], rows)


def _score(predictor: str) -> str:
    return "entropy" if predictor in ("mean", "tempered") else "information"
