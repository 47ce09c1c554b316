"""Why a draw or a gradient is not finite: the cause in words, where it lies in IVON's own state."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.low_precision import read_state
from vlora.ivon.noise import controlled
from vlora.ivon.shards import local_state, lowest_of_ranks

__all__ = ["PriorWatch", "SkipWatch", "nonfinite_cause", "state_fault"]

_IN_A_ROW = 10
"""Skipped steps in a row after which a warning says so."""


def state_fault(state: Mapping[str, Any], weight_decay: float) -> str | None:
    """What keeps a parameter's draws, ``mean + noise / sqrt(ess (h + weight_decay))``, from being finite, if anything.

    Args:
        state: State of the parameter, whole or sharded; only the part that this process holds is looked at.
        weight_decay: Of its group.
    """
    part = local_state(dict(state))
    if part["mean"].numel() == 0:
        return None
    for key in ("mean", "momentum"):
        if not read_state(part, key).isfinite().all():
            return f"its {key} holds NaN or infinity"
    least, largest = _precision_range(part, weight_decay)
    if not (least > 0 and largest < math.inf):
        return f"its h + weight_decay, which must be > 0 and finite, is between {least:.4g} and {largest:.4g}"
    return None


def _precision_range(part: Mapping[str, Any], weight_decay: float) -> tuple[float, float]:
    """Smallest and largest ``h + weight_decay`` of a state; NaN where h holds it."""
    least, largest = (float(value) for value in (read_state(part, "hess") + weight_decay).aminmax())
    return least, largest


def nonfinite_cause(params: Iterable[tuple[Mapping[str, Any], Mapping[str, Any], Tensor]]) -> str:
    """Cause and cure of gradients that are not finite, as one sentence.

    Args:
        params: State, group and owner of the parameters that took part in the step.
    """
    for state, group, owner in params:
        fault = state_fault(state, group["weight_decay"])
        if fault is not None:
            return (
                f"The data are not the cause: the draw itself was not finite, as of a parameter of shape "
                f"{tuple(owner.shape)} {fault}. A step went wrong, or such weights or state were written since; go "
                "back to a checkpoint"
            )
    return "Check the data and the loss, lower lr, or pass skip_nonfinite=True"


class SkipWatch:
    """Notices that ``skip_nonfinite`` skips one step after the other: the run has stopped learning."""

    def __init__(self) -> None:
        self._times, self._said = 0, False

    def look(
        self, skipped: bool, params: Iterable[tuple[Mapping[str, Any], Mapping[str, Any], Tensor]]
    ) -> None:
        """Take in a step; warns once.

        Args:
            skipped: Whether it was skipped.
            params: As in :func:`nonfinite_cause`.
        """
        self._times = self._times + 1 if skipped else 0
        if self._times < _IN_A_ROW or self._said:
            return
        self._said = True
        warnings.warn(
            f"IVON skipped {self._times} steps in a row, as their gradients were not finite. "
            f"{nonfinite_cause(params)}.".replace(", or pass skip_nonfinite=True", ""),
            stacklevel=4,
        )


class PriorWatch:
    """Notices that ``weight_decay`` was lowered to where ``h + weight_decay`` is not positive everywhere.

    Price's estimate of h goes down to ``-weight_decay``, and no update takes it further: only a weight decay written
    into a group does. Such an entry's draw is NaN; where its gradient is 0, as of an embedding's unused row, the loss
    does not show it, and ``NaN * 0`` would enter h and the mean. So it is asked before a draw or a step is made with
    the new value. h is looked at only then, and once after a checkpoint; else it costs a comparison of two numbers.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def look(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Take in the weight decay of every group whose prior is not the controller's, which keeps it above zero.

        Args:
            groups: Parameter groups.
            state: State of the optimizer; a parameter without one starts at ``hess_init``.

        Raises:
            TrainingError: If no draw can be made with it; on all processes that hold parts of the parameters.
        """
        now = {n: float(group["weight_decay"]) for n, group in enumerate(groups) if not controlled(group)}
        due = [n for n, value in now.items() if not value >= self._seen.get(n, math.inf)]
        if due:
            self._require_positive(groups, due, state)
        self._seen = now

    @torch.no_grad()
    def _require_positive(
        self, groups: Sequence[Mapping[str, Any]], due: list[int], state: Mapping[Tensor, Mapping[str, Any]]
    ) -> None:
        items = [(n, param) for n in due for param in groups[n]["params"]]
        least = [_least_precision(groups[n], state.get(param, {})) for n, param in items]
        own = next((i for i, value in enumerate(least) if not value > 0), len(items))
        first = lowest_of_ranks(own, [param for _, param in items])
        if first < len(items):
            number, param = items[first]
            self._refuse(number, param, float(groups[number]["weight_decay"]), least[first])

    def _refuse(self, number: int, param: Tensor, weight_decay: float, least: float) -> None:
        before = self._seen.get(number)
        lowered = "" if before is None else f", lowered from {before:g}"
        got = "less on another process" if least > 0 else f"{least:.4g}"
        cure = f"Set weight_decay above {weight_decay - least:.6g}, or go" if least <= 0 else "Go"
        raise TrainingError(
            f"expected h + weight_decay > 0, got {got} in parameter group {number}, shape {tuple(param.shape)}, where "
            f"weight_decay is {weight_decay:g}{lowered}: no draw can be made of it; mean and Hessian are unchanged. "
            f"{cure} back to a checkpoint"
        )


def _least_precision(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """Smallest ``h + weight_decay`` of what this process holds of a parameter; infinity if that is nothing."""
    weight_decay = float(group["weight_decay"])
    if "mean" not in state:
        return float(group["hess_init"]) + weight_decay
    part = local_state(dict(state))
    return _precision_range(part, weight_decay)[0] if part["mean"].numel() else math.inf
