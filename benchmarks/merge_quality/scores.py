"""From a set of adapters to numbers: every merge at its default and at its best scalar, floor and ceiling beside it."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import ABLATIONS, MAIN, Arm, cut, merge
from benchmarks.merge_quality.conflict import conflict
from benchmarks.merge_quality.network import MODULES
from benchmarks.merge_quality.training import logits
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.proper_scores import correctness, negative_log_likelihood
from vlora.eval.metrics.temperature import fit_temperature, temper

if TYPE_CHECKING:
    from benchmarks.merge_quality.run import Unit

SCALARS = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Factors on the merged update of every method but the mean."""
MEAN_SCALARS = (1.0, 1.4, 2.0, 2.8, 4.0)
"""Of the means, which are shorter."""
MEANS = ("linear", "fisher", "regmean", "slerp")


def evaluate(unit: "Unit", library: Library, arms: Mapping[str, Arm], *, test: bool) -> dict[str, Any]:
    """Scores of the arms, of no adapter and of the individual ones, per task.

    Args:
        unit: The set of adapters.
        library: Tasks and adapters.
        arms: What to compare.
        test: Look at the test rows, and check the conflict numbers of posteriors; else validation rows only.

    Returns:
        ``arms``: name -> ``default`` and ``best`` (scalar of the lowest mean validation NLL) -> task -> metrics,
        and ``merge_seconds`` of CPU.
    """
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, test)
    found: dict[str, Any] = {
        "no adapter": {"default": scorer.all({})}, "individual adapters": {"default": scorer.own(adapters)},
    }  # fmt: skip
    made: dict[str, dict[str, Tensor]] = {}
    for name, arm in arms.items():
        if not fits(arm, adapters):
            continue
        started = time.process_time()
        made[name] = cut(arm, made[arm.cut_from], adapters) if arm.cut_from else merge(arm, adapters)
        seconds = time.process_time() - started
        if name in ABLATIONS:
            found[name] = {"default": scorer.all(made[name])}
        else:
            found[name] = scorer.tuned(made[name], MEAN_SCALARS if arm.method in MEANS else SCALARS)
        found[name]["merge_seconds"] = seconds
    record = {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": found}
    if test and unit.whole and unit.optimizer == "ivon" and "Fisher" in arms:
        record["conflict"] = conflict(adapters, merge(MAIN["task arithmetic (sum)"], adapters), scorer.nll)
    return record


def evaluate_joint(unit: "Unit", library: Library) -> dict[str, Any]:
    """Scores of one adapter trained on all tasks of a set."""
    adapter = library.joint(unit.family, unit.tasks, unit.seed)
    heads = {name: adapter.head(i) for i, name in enumerate(unit.tasks)}
    heads |= {name: adapter.head(0) for name in unit.unseen}
    scores = Scorer(library, heads, unit, True).all(adapter.deltas())
    return {"family": unit.family, "count": unit.count, "seed": unit.seed, "scores": scores}


def fits(arm: Arm, adapters: Sequence[Adapter]) -> bool:
    """Whether the arm exists for these adapters."""
    return (arm.count is None or arm.count == len(adapters)) and (
        arm.needs != "h" or f"{MODULES[0]}.hess_b" in adapters[0].tensors
    )


class Scorer:
    """Metrics of merged weights on the tasks of a unit."""

    def __init__(self, library: Library, heads: Mapping[str, Tensor], unit: "Unit", test: bool) -> None:
        self.library, self.heads, self.unit, self.test = library, heads, unit, test

    def tuned(self, deltas: Mapping[str, Tensor], scalars: Sequence[float]) -> dict[str, Any]:
        """At the scalar 1 and at the one with the lowest mean validation NLL over the merged tasks."""
        default, found = self.all(deltas), self.chosen(deltas, scalars)
        return {"default": default, **found}

    def chosen(self, deltas: Mapping[str, Tensor], scalars: Sequence[float]) -> dict[str, Any]:
        """At the scalar with the lowest mean validation NLL over the merged tasks."""
        by_scalar = {s: self._validation(_times(deltas, s)) for s in scalars}
        best = min(by_scalar, key=lambda s: by_scalar[s])
        told = {str(s): v for s, v in by_scalar.items()}
        return {"validation_nll": told, "best": self.all(_times(deltas, best)), "scalar": best}

    def all(self, deltas: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Metrics per task, seen and unseen."""
        return {
            name: self.one(name, deltas, self.heads[name]) for name in (*self.unit.tasks, *self.unit.unseen)
        }

    def own(self, adapters: Sequence[Adapter]) -> dict[str, dict[str, float]]:
        """Every task under its own adapter."""
        return {a.task: self.one(a.task, a.deltas(), a.head()) for a in adapters}

    def one(self, name: str, deltas: Mapping[str, Tensor], head: Tensor) -> dict[str, float]:
        """Metrics on test rows, with a temperature from validation rows beside the raw ones."""
        validation = self._log_probs(name, "validation", deltas, head)
        label = self.library.rows(name, "validation").label.numpy()
        if not self.test:
            return _metrics(validation, label)
        log_probs, truth = (
            self._log_probs(name, "test", deltas, head),
            self.library.rows(name, "test").label.numpy(),
        )
        temperature = float(fit_temperature(validation, label).temperature)
        tempered = negative_log_likelihood(temper(log_probs, temperature), truth).mean
        return {**_metrics(log_probs, truth), "nll_tempered": float(tempered), "temperature": temperature}

    def nll(self, name: str, deltas: Mapping[str, Tensor], split: str) -> float:
        """Mean NLL of one task on a split."""
        log_probs = self._log_probs(name, split, deltas, self.heads[name])
        return float(negative_log_likelihood(log_probs, self.library.rows(name, split).label.numpy()).mean)

    def _validation(self, deltas: Mapping[str, Tensor]) -> float:
        values = []
        for name in self.unit.tasks:
            log_probs = self._log_probs(name, "validation", deltas, self.heads[name])
            label = self.library.rows(name, "validation").label.numpy()
            values.append(float(negative_log_likelihood(log_probs, label).mean))
        return sum(values) / len(values)

    def _log_probs(self, name: str, split: str, deltas: Mapping[str, Tensor], head: Tensor) -> np.ndarray:
        states = self.library.states(name, split, dict(deltas))
        return torch.log_softmax(logits(states, head).double(), -1).numpy()


def _metrics(log_probs: np.ndarray, label: np.ndarray) -> dict[str, float]:
    correct = correctness(log_probs, label)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(negative_log_likelihood(log_probs, label).mean),
        "ece": float(calibration(np.exp(log_probs.max(-1)), correct).ece),
    }


def _times(deltas: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {module: factor * delta for module, delta in deltas.items()}
