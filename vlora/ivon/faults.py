"""Why a draw or a gradient is not finite: the cause in words, where it lies in IVON's own state."""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from vlora.ivon.low_precision import read_state
from vlora.ivon.shards import local_state

__all__ = ["SkipWatch", "nonfinite_cause", "state_fault"]

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
    least, largest = (float(value) for value in (read_state(part, "hess") + weight_decay).aminmax())
    if not (least > 0 and largest < math.inf):
        return f"its h + weight_decay, which must be > 0 and finite, is between {least:.4g} and {largest:.4g}"
    return None


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
                f"{tuple(owner.shape)} {fault}. A step went wrong, or weight_decay was lowered or such weights loaded "
                "since; go back to a checkpoint"
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
