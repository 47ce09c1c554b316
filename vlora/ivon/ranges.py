"""Ranges of IVON's hyper-parameters: one table, and one line for a value that is out of range or no number."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from vlora.errors import ConfigError, TrainingError

__all__ = ["check_range", "require_usable"]

_Range = tuple[Callable[[float], bool], str]
_FROM_ZERO: _Range = (lambda v: 0 <= v < math.inf, ">= 0 and finite")
_ABOVE_ZERO: _Range = (lambda v: 0 < v < math.inf, "> 0 and finite")
_DECAY: _Range = (lambda v: 0 <= v < 1, "in [0, 1)")
_COUNT: _Range = (lambda v: v >= 1 and v.is_integer(), "a whole number >= 1")

_RANGES: dict[str, _Range] = {
    "lr": _FROM_ZERO,
    "ess": _ABOVE_ZERO,
    "hess_init": _FROM_ZERO,
    "beta1": _DECAY,
    "beta2": _DECAY,
    "weight_decay": _FROM_ZERO,
    "prior_precision": _FROM_ZERO,
    "clip_radius": (lambda v: v > 0, "> 0"),
    "mc_samples": _COUNT,
    "min_8bit_size": _COUNT,
    "prior_update_every": _COUNT,
    "grad_batch_size": _ABOVE_ZERO,
    "noise_cost": _ABOVE_ZERO,
    "noise_rate": _ABOVE_ZERO,
    "noise_warmup": _FROM_ZERO,
    "init_std": _ABOVE_ZERO,
    "max_std": _ABOVE_ZERO,
    "max_std_ratio": (lambda v: v > 1, "> 1"),
    "max_grad_norm": (lambda v: 0 <= v < math.inf, "> 0 and finite, or None"),
    "num_examples": (lambda v: 1 <= v < math.inf, ">= 1 and finite"),
    "num_steps": (lambda v: 1 <= v < math.inf, ">= 1 and finite"),
    "max_step": _ABOVE_ZERO,
}

_CURES = {
    "num_steps": "give the optimizer steps of the run: max_steps, or epochs x rows / examples per step; data without a "
    "length (iterable) need max_steps, in TrainingArguments and here",
    "grad_batch_size": "give the examples of one optimizer step: batch size x accumulation x processes",
}
"""What to give instead, where a caller may not know it."""

_ROUNDING = 1e-12
"""A schedule that ends at a learning rate of 0 may miss it by so much."""


def check_range(key: str, value: Any) -> None:
    """Refuse a hyper-parameter that is out of range or no number.

    Args:
        key: Its name.
        value: Python or numpy number, or a tensor with one entry.

    Raises:
        ConfigError: In one line, what it must be and what came.
    """
    in_range, words = _RANGES[key]
    cure = f"; {_CURES[key]}" if key in _CURES else ""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number and not (isinstance(value, Tensor) and value.numel() == 1):
        raise ConfigError(
            f"IVON's {key} must be {words}, got {value!r}, which is no number but {type(value).__name__}{cure}"
        )
    if not in_range(float(value)):  # pyright: ignore[reportArgumentType]
        raise ConfigError(f"IVON's {key} must be {words}, got {value}{cure}")


def require_usable(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse settings that make draws or steps NaN and that came after IVON was made; a few comparisons a group.

    A learning rate that is a tensor is not looked at: it may be on a device, which would have to be waited for.

    Raises:
        TrainingError: Naming group, setting and value.
    """
    for number, group in enumerate(groups):
        for key in ("ess", "weight_decay", "lr"):
            value, (in_range, words) = group[key], _RANGES[key]
            slack = _ROUNDING if key == "lr" else 0.0
            if not isinstance(value, Tensor) and not in_range(value + slack):
                raise TrainingError(
                    f"{key} of parameter group {number} is {value}, it must be {words}: a scheduler, a callback or a "
                    "checkpoint has set it after IVON was made"
                )
