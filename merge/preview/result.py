"""What a preview found: predictions for all weightings, and the named ones as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Preview", "short"]


@dataclass(frozen=True)
class Preview:
    """Predictions for all weightings."""

    tasks: list[str]
    members: dict[str, list[str]]
    """Per task, names of its adapters."""
    weights: Tensor
    """Shape ``(k, T)``."""
    increase: Tensor
    """Relative loss increase, :mod:`vlora.merge.preview.weightings`. Shape ``(k, T)``."""
    std: Tensor | None
    """What a standard deviation over the adapters' posteriors adds, same shape; None without posteriors."""
    without: Tensor
    """What 1 stands for by h: the increase without any adapter, in nats over all training examples. Shape ``(T,)``."""
    examples: list[int | None]
    """Training examples per task; None where the scale is not known and only ratios count."""
    front: list[int]
    """Weightings that no other beats on all tasks."""
    named: dict[str, int]
    """Row of the best average, the best worst task, and of the configuration's own weights."""
    notes: list[str] = field(default_factory=list)
    shares: Tensor | None = None
    """Weight of every adapter in the merge, in the order of ``members``, where tasks are mixtures. Shape ``(k, P)``."""
    check: dict[str, float] = field(default_factory=dict)
    """Of gradient matching: ``solved``, how many weightings were solved in full (the named ones and two more, which
    hold these values), and the largest difference that made to ``increase`` and ``std``."""
    worth: Tensor | None = None
    """Nats per example that every task's adapter is worth, as given: 1 stands for that, and the average is by it."""

    def row(self, index: int) -> dict[str, Any]:
        """One weighting as plain data."""
        facts: dict[str, Any] = {
            "weights": _named(self.tasks, self.weights[index]),
            "increase": _named(self.tasks, self.increase[index]),
            "average": short(_mean(self.increase[index], self.worth)),
            "worst": short(self.increase[index].max().item()),
        }
        if self.std is not None:
            facts["std"] = _named(self.tasks, self.std[index])
        if self.shares is not None:
            adapters = [name for task in self.tasks for name in self.members[task]]
            facts["adapter_weights"] = _named(adapters, self.shares[index])
        nats = {
            task: short(self.increase[index, t].item() * value)
            for t, (task, value) in enumerate(zip(self.tasks, self._worth(), strict=True))
            if value is not None
        }
        return facts | ({"nats_per_example": nats} if nats else {})

    def _worth(self) -> list[float | None]:
        """Nats per example that 1 stands for: as given, else by h where that has a scale."""
        if self.worth is not None:
            return [float(value) for value in self.worth]
        pairs = zip(self.without.tolist(), self.examples, strict=True)
        return [total / count if count else None for total, count in pairs]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the named weightings and the front in full, all others as arrays."""
        return {
            "format": 2,
            "tasks": self.tasks,
            "members": self.members,
            "notes": self.notes,
            "named": {name: self.row(index) for name, index in self.named.items()},
            "front": [self.row(index) for index in self.front],
            "weights": _rows(self.weights),
            "increase": _rows(self.increase),
            "std": None if self.std is None else _rows(self.std),
            "check": self.check,
            "worth": None if self.worth is None else _named(self.tasks, self.worth),
        }


def _mean(increase: Tensor, worth: Tensor | None) -> float:
    """Mean over the tasks by their worth."""
    return (increase.mean() if worth is None else increase @ worth / worth.sum()).item()


def _named(tasks: Sequence[str], values: Tensor) -> dict[str, float]:
    return {task: short(value) for task, value in zip(tasks, values.tolist(), strict=True)}


def _rows(values: Tensor) -> list[list[float]]:
    return [[short(value) for value in row] for row in values.tolist()]


def short(value: float) -> float:
    """Six digits."""
    return float(f"{value:.6g}")
