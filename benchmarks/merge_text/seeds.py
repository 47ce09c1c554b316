"""Several seeds per text: averaged, as mixture posteriors at several temperatures, or one seed alone."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.merge_text.arms import Bench
from benchmarks.merge_text.texts import TEXTS

SETS = {"01": (0, 1), "02": (0, 2), "12": (1, 2), "012": (0, 1, 2)}
"""Name -> seeds; the sets share adapters."""
TEMPERATURES = {"average": math.inf, "1": 1.0, "0.1": 0.1, "0.01": 0.01, "0.0001": 0.0001}
"""Relative to what a text's adapters are worth; the last takes one seed per text."""
TAU = 0.3


def mixtures(bench: Bench, name: str) -> dict[str, Any]:
    """Kronecker gradient matching of all adapters of some seeds, every text at weight 1.

    Returns:
        ``arms``: name -> ``test`` (NLL per token and text), ``predicted`` (relative loss increase per text) and
        ``weights`` of the single adapters; arms are temperatures and the seeds alone.
    """
    from vlora.merge.adapters.reading import read_inputs
    from vlora.merge.preview.build import build_model
    from vlora.posterior import Posterior

    seeds = SETS[name]
    folders = {f"{text}_{seed}": bench.adapters(seed)[text] for text in TEXTS for seed in seeds}
    inputs = read_inputs([Posterior.from_pretrained(path) for path in folders.values()], list(folders))
    ones = torch.ones(1, len(TEXTS), dtype=torch.float64)
    arms: dict[str, dict[str, Any]] = {}
    for label, temperature in TEMPERATURES.items():
        model = build_model(inputs, [key.split("_")[0] for key in folders], tau=TAU, mixture=temperature)
        weights = dict(zip(folders, model.coefficients(ones)[0].tolist(), strict=True))
        predicted = (model.predict(ones)[0] / model.without())[0].tolist()
        arms[label] = {"weights": weights, "predicted": dict(zip(TEXTS, predicted, strict=True))}
    arms |= {f"seed {seed}": {"weights": _one(folders, seed)} for seed in seeds}
    made = {label: _merge(bench, f"{name}_{label}", folders, arm["weights"]) for label, arm in arms.items()}
    scores = bench.scores(made, "test", bench.work / f"mixture_{name}" / "test")
    return {
        "seeds": list(seeds),
        "arms": {label: {**arm, "test": scores[label]} for label, arm in arms.items()},
    }


def _one(folders: Sequence[str] | dict[str, Any], seed: int) -> dict[str, float]:
    return {key: float(key.endswith(f"_{seed}")) for key in folders}


def _merge(bench: Bench, name: str, folders: dict[str, Any], weights: dict[str, float]) -> Any:
    sources = [{"path": str(folders[key]), "weight": w} for key, w in weights.items() if w > 1e-9]
    place = bench.work / "mixture" / name.replace(" ", "_")
    return bench.merged(place, sources, method="gradient_matching", curvature="kronecker", tau=TAU)
