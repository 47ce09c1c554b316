"""Float32 h beside the h of a run, fed by the very gradients of that run: what its storage changes, and nothing else.

Two runs that differ in their optimizer states soon have different weights, and then different squared gradients too.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from vlora import IVON
from vlora.ivon import faults, low_precision, rounding, sampling, state, update
from vlora.ivon.step import clipped_decay, corrected_decay

__all__ = ["Shadow", "exact_hess", "shadow"]

_EXACT = "hess_exact"


class Shadow:
    """h of every parameter as ``IVON.auto`` has it, in float32 (:func:`vlora.ivon.step.clipped_decay`)."""

    def __init__(self) -> None:
        self.hess: dict[Tensor, Tensor] = {}
        self.optimizer: IVON | None = None
        self.step, self.weight = 0, 0.0

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before a step: take its gradients."""
        if not isinstance(optimizer, IVON):
            return
        self.optimizer, self.step = optimizer, self.step + 1
        (group,) = optimizer.param_groups
        grads = {param: param.grad for param in group["params"] if param.grad is not None}
        norm = torch.stack([grad.norm() for grad in grads.values()]).norm().item()
        clip = min(1.0, group["max_grad_norm"] / (norm + 1e-6)) if group["max_grad_norm"] else 1.0
        decay = corrected_decay(group["beta2"], self.step)
        keep = clipped_decay(decay, clip=clip, weight=self.weight)
        self.weight = decay * self.weight + (1 - decay) * clip**2
        for param, grad in grads.items():
            sample: Tensor = group["grad_batch_size"] * grad.square()
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


@contextmanager
def exact_hess() -> Iterator[None]:
    """8-bit states whose h is kept in float32 beside its codes, and read from there: the momentum alone has 8 bits."""
    write, read = low_precision.write_state, low_precision.read_state

    def write_both(entry: dict[str, Any], momentum: Tensor, hess: Tensor, **settings: Any) -> None:
        write(entry, momentum, hess, **settings)
        entry[_EXACT] = hess.clone()

    def read_exact(entry: dict[str, Any], key: str) -> Tensor:
        return entry[_EXACT].clone() if key == "hess" and _EXACT in entry else read(entry, key)

    patches = [
        *(mock.patch.object(module, "write_state", write_both) for module in (low_precision, update)),
        *(
            mock.patch.object(module, "read_state", read_exact)
            for module in (low_precision, faults, rounding, sampling, state, update)
        ),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield
