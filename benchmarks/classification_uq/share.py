r"""The share that is left at the precision of the directions themselves: nothing of the prior enters.

    left = tr(J (F + alpha I)^-1 J^T) / tr(J J^T / alpha),      alpha = tr F^2 / (20 tr F)

``Leading.share_left`` as it is by default, with all eigenvectors of the Fisher matrix over all tensors at once.
``left.py`` has alpha from ``IVON.auto``, whose posterior is cold: ess and with it ess times weight_decay grow with the
number of directions that the noise may cost, while F shrinks where the rows are learnt. On ``trec`` that alpha is 1.8
times tr F^2 / tr F, on tasks of two classes a tenth of it, so that there hardly anything counts as known. Practice rows
chose the twentieth (seed 100; calibration rows against ``tinystories_1k``).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.classification_uq.arms import distances
from benchmarks.classification_uq.leading import measure_directions, shares_left
from benchmarks.classification_uq.left import tested, trained
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.practice import pairs
from benchmarks.classification_uq.scores import separation
from benchmarks.classification_uq.tasks import Task
from vlora.posterior import Posterior
from vlora.posterior.leading import Leading

__all__ = ["MULTIPLES", "measure_share", "practise_share"]

MULTIPLES = (0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 1.0)
"""Of tr F^2 / tr F, for practice rows."""
SPLITS = ("clean", "ambiguous", "near", "far")


def measure_share(task: Task, seed: int) -> dict[str, Any]:
    """What the share separates on test rows, by who trained, and the distance of the same run."""
    found: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for name, network, posterior, prior, whole in _measured(task, seed):
        facts[name] = _facts(whole, prior, len(task.train))
        alpha = whole.share_precision
        shares = {
            split: shares_left(network, posterior, task.splits[split], whole, [alpha])[alpha].numpy()
            for split in SPLITS
        }
        found[f"{name}_leading"] = {"separation": {"left": separation(tested(shares))}}
        if name == "laplace":
            away = distances(network, task.train, {split: task.splits[split] for split in SPLITS})
            own = tested({split: one.numpy() for split, one in away.items()})
            found["distance"] = {"separation": {"distance": separation(own)}}
    return {"task": task.name, "seed": seed, "facts": facts, "scores": found}


def practise_share(task: Task, seed: int) -> dict[str, Any]:
    """The same on practice rows, at multiples of tr F^2 / tr F and at the prior precision of ``IVON.auto``."""
    found: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for name, network, posterior, prior, whole in _measured(task, seed):
        facts[name] = _facts(whole, prior, len(task.train))
        typical = facts[name]["typical"]
        names = {factor * typical: f"{name}, {factor:g}" for factor in MULTIPLES} | {prior: f"{name}, prior"}
        own, foreign = (
            shares_left(network, posterior, task.splits[split], whole, [*names])
            for split in ("calibration", "practice")
        )
        found |= {text: pairs(own[alpha].numpy(), foreign[alpha].numpy()) for alpha, text in names.items()}
        if name == "laplace":
            rows = {split: task.splits[split] for split in ("calibration", "practice")}
            away = {split: one.numpy() for split, one in distances(network, task.train, rows).items()}
            found["distance"] = pairs(away["calibration"], away["practice"])
    return {"task": task.name, "seed": seed, "facts": facts, "scores": found}


def _measured(task: Task, seed: int) -> Iterator[tuple[str, Network, Posterior, float, Leading]]:
    """Name, network, posterior, prior precision of IVON and all eigenvectors."""
    for name, network, posterior, alpha in trained(task, seed):
        count = len(task.train) * task.num_classes
        yield name, network, posterior, alpha, measure_directions(network, posterior, task.train, count)


def _facts(whole: Leading, prior: float, rows: int) -> dict[str, Any]:
    """The precisions, and the spectrum in short."""
    values = whole.values
    trace, square = float(values.sum()), float(values.square().sum())
    above = {"above_share": whole.share_precision, "above_prior": prior}
    return {
        **{"prior": prior, "share_precision": whole.share_precision, "typical": square / trace},
        **{"trace_per_row": trace / rows, "largest": float(values[0]), "rank": len(values)},
        **{name: int(torch.count_nonzero(values > limit)) for name, limit in above.items()},
        "eigenvalues": np.round(values[:8].numpy(), 2).tolist(),
    }
