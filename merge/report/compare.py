"""Adapters and merges side by side: how far their updates are from each other, module by module.

Distances are |X - Y|_F / sqrt(|X|_F |Y|_F) (0 the same, sqrt 2 for orthogonal updates of equal size), cosines are of
the updates as vectors; both come from the factors, without dense matrices, and do not depend on the factoring.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.adapters.reading import Inputs, read_inputs
from vlora.merge.config import distinct
from vlora.merge.low_rank.algebra import inner_product
from vlora.posterior import Posterior

__all__ = ["compare"]


def compare(folders: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare adapters of one base model.

    Args:
        folders: Adapter, posterior or merged folders, two or more.
        names: Short names; the last part of each path if not given.

    Returns:
        Plain data: ``adapters`` (what each is, how it was merged, its size), ``pairs`` (cosine and distance over all
        modules, and the module where they differ most), ``modules`` (norms, and cosine and distance per pair).

    Raises:
        ConfigError: Fewer than two.
        IncompatibleAdaptersError: They do not belong to one base model, or a module has another shape.
    """
    if len(folders) < 2:
        raise ConfigError("give two or more folders to compare")
    posteriors = [Posterior.from_pretrained(folder) for folder in folders]
    labels = distinct(names or [Path(folder).name or folder for folder in folders])
    for posterior, name in zip(posteriors, labels, strict=True):
        check_adapter(posterior, name)
    check_together(posteriors, labels)
    inputs = read_inputs(posteriors, labels)
    products = {module: _products(inputs, module) for module in inputs.modules}
    pairs = list(combinations(range(len(folders)), 2))
    return {
        "adapters": [_describe(folder, inputs, i, products) for i, folder in enumerate(folders)],
        "pairs": [_pair(i, j, labels, products) for i, j in pairs],
        "modules": {
            module: {
                "norm": {labels[i]: math.sqrt(p[i][i]) for i in range(len(labels))},
                "pairs": [{"between": [labels[i], labels[j]], **_between(p, i, j)} for i, j in pairs],
            }
            for module, p in products.items()
        },
    }


def _products(inputs: Inputs, module: str) -> list[list[float]]:
    updates = inputs.updates(module)
    size = range(len(updates))
    upper = {(i, j): inner_product(updates[i], updates[j]) for i in size for j in size if i <= j}
    return [[max(0.0, upper[i, j]) if i == j else upper[min(i, j), max(i, j)] for j in size] for i in size]


def _between(products: Sequence[Sequence[float]], i: int, j: int) -> dict[str, float | None]:
    sizes = math.sqrt(products[i][i] * products[j][j])
    if sizes == 0:
        return {"cosine": None, "distance": None}
    gap = products[i][i] + products[j][j] - 2 * products[i][j]
    return {"cosine": products[i][j] / sizes, "distance": math.sqrt(max(0.0, gap) / sizes)}


def _pair(i: int, j: int, labels: Sequence[str], products: Mapping[str, list[list[float]]]) -> dict[str, Any]:
    size = len(labels)
    total = [[sum(p[a][b] for p in products.values()) for b in range(size)] for a in range(size)]
    distances = {m: d for m, p in products.items() if (d := _between(p, i, j)["distance"]) is not None}
    furthest = max(distances, key=lambda m: distances[m], default=None)
    return {
        "between": [labels[i], labels[j]],
        **_between(total, i, j),
        "furthest_module": furthest,
        "furthest_distance": distances[furthest] if furthest else None,
    }


def _describe(
    folder: str, inputs: Inputs, index: int, products: Mapping[str, list[list[float]]]
) -> dict[str, Any]:
    posterior = inputs.posteriors[index]
    ranks = sorted({inputs.update(index, module).rank for module in inputs.layouts[index]})
    facts: dict[str, Any] = {
        "name": inputs.names[index],
        "path": str(folder),
        "kind": "posterior" if posterior.has_hess else "plain adapter",
        "modules": len(inputs.layouts[index]),
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "norm": math.sqrt(sum(p[index][index] for p in products.values())),
        "full_tensors": len(set(inputs.full_keys) & posterior.mean.keys()),
    }
    report = _report(Path(folder).expanduser())
    return facts | (_merged(report) if report else {})


def _merged(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a merge report says, in few words."""
    modules = report["modules"].values()
    kept = [row["retained_energy"] for row in modules if row.get("retained_energy") is not None]
    clamped = max((row.get("clamped_fraction", 0.0) for row in modules), default=0.0)
    return {
        "method": report["method"],
        "options": report.get("options", {}),
        "weights": {source["name"]: source["weight"] for source in report["adapters"]},
        "retained_energy": sum(kept) / len(kept) if kept else None,
        "clamped_fraction": clamped,
        "predicted_increase": {n: row["increase"] for n, row in report.get("conflict", {}).items()},
        "module_increase": {m: row.get("increase", {}) for m, row in report["modules"].items()},
    }


def _report(folder: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((folder / "merge_report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
