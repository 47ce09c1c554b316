"""Float32 h beside the h of a run, fed by the very gradients of that run: what its storage changes, and nothing else.

Two runs that differ in their optimizer states soon have different weights, and then different squared gradients too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from vlora import IVON
from vlora.ivon.step import corrected_decay

__all__ = ["Shadow", "shadow"]


class Shadow:
    """h_t = beta2_t h_(t-1) + (1 - beta2_t) b g_t^2 of every parameter, as ``IVON.auto`` has it."""

    def __init__(self) -> None:
        self.hess: dict[Tensor, Tensor] = {}
        self.optimizer: IVON | None = None
        self.step = 0

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before a step: take its gradients."""
        if not isinstance(optimizer, IVON):
            return
        self.optimizer, self.step = optimizer, self.step + 1
        for group in optimizer.param_groups:
            keep = corrected_decay(group["beta2"], self.step)
            for param in group["params"]:
                if param.grad is not None:
                    sample: Tensor = group["grad_batch_size"] * param.grad.square()
                    self.hess[param] = torch.lerp(sample, self.hess.setdefault(param, sample), keep)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The optimizer's h as it is stored, and in float32, of every parameter."""
        assert self.optimizer is not None
        return [(self.optimizer.posterior_state(param)["hess"], own) for param, own in self.hess.items()]


@contextmanager
def shadow() -> Iterator[Shadow]:
    """Watch the steps of whatever IVON runs inside."""
    watcher = Shadow()
    handle = register_optimizer_step_pre_hook(watcher)
    try:
        yield watcher
    finally:
        handle.remove()
