"""Clipping of the gradient's norm where it enters the mean, and nowhere else.

AdamW is usually run with gradients cut to a norm of 1, and needs it: without, the large gradients of the first steps
stay in the second moment and slow all later ones. Cut before the optimizer sees them, they would also make h and the
measured cost of noise too small. So IVON cuts them itself, with the norm over all parameters,

    c = min(1, max_grad_norm / (norm + 1e-6))                  as torch.nn.utils.clip_grad_norm_ has it

and takes ``c g`` into the momentum and into the second moment that the step is divided by, ``g`` into the cost of the
noise, and ``g^2`` with weight c^2 into h, whose scale then stays that of the data (``vlora.ivon.step.clipped_decay``).
"""

import warnings
from typing import Any

from vlora.errors import ConfigError
from vlora.ivon.ranges import check_range
from vlora.ivon.step import corrected_decay

__all__ = ["NormWatch", "check_clipping", "clip_settings", "set_clip"]

_SAME, _OFTEN = 1e-5, 4


def check_clipping(values: dict[str, Any]) -> None:
    """Check ``max_grad_norm`` of a new group; 0 and None are no clipping.

    Raises:
        ConfigError: The norm is out of range, or the step is not Adam's.
    """
    limit = values["max_grad_norm"]
    if limit is None:
        return
    check_range("max_grad_norm", limit)
    if limit and values["mean_step"] != "adam":
        raise ConfigError(
            'max_grad_norm needs mean_step="adam": give max_grad_norm=None, and bound entries by clip_radius'
        )


def set_clip(group: dict[str, Any], norm: float) -> None:
    """Take in the norm of a step's gradient, before the step.

    Args:
        group: Parameter group, changed in place.
        norm: Over the gradients of all groups, without a loss scale.
    """
    if not group["max_grad_norm"]:
        return
    clip = min(1.0, group["max_grad_norm"] / (norm + 1e-6))
    group["clip_steps"] += 1
    decay = corrected_decay(group["beta2"], group["clip_steps"]) if group["debias"] else group["beta2"]
    before = group["clip_weight"]
    group["clip"], group["weight_before"] = clip, before
    group["clip_weight"] = decay * before + (1 - decay) * clip**2


def clip_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``ivon_step`` that say how much of the gradient counts."""
    if not group["max_grad_norm"]:
        return {"clip": None}
    return {name: group[name] for name in ("clip", "weight_before", "clip_weight")}


class NormWatch:
    """Notices gradients that were clipped before the optimizer saw them: they have the same norm again and again."""

    def __init__(self) -> None:
        self._last, self._times, self._said = 0.0, 0, False

    def look(self, norm: float) -> None:
        """Take in the norm of a step's gradient; warns once."""
        same = norm > 0 and abs(norm - self._last) <= _SAME * norm
        self._last, self._times = norm, self._times + 1 if same else 0
        if self._times >= _OFTEN and not self._said:
            self._said = True
            warnings.warn(
                f"gradients reach IVON with the same norm, {norm:.4g}, step after step: clipped before it sees them, "
                "they make h and the cost of noise too small. Set max_grad_norm=0 in TrainingArguments; IVON.auto "
                "clips by itself (max_grad_norm).",
                stacklevel=4,
            )
