"""The reference step through ``torch.compile``: one generated kernel that reads and writes every operand once.

The code compiled is ``vlora.ivon.step.ivon_step`` itself. Its numbers go in as float64 scalars on the device, so that
a learning-rate schedule, the step count or another group never compile again; only another dtype, device or kind of
estimate does. Equal to the reference up to the compiler's order of operations (fused multiply-adds).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vlora.ivon.step import ivon_step

__all__ = ["COMPILED_BLOCK_ENTRIES", "compiled_step_", "step_numbers"]

COMPILED_BLOCK_ENTRIES = 2**20
"""Entries of a block: a call costs as much as some ten thousand entries, and there are no temporaries to bound."""

BACKEND = "inductor"
"""Backend of ``torch.compile``; on a CPU it needs a C++ compiler."""


def step_numbers(settings: dict[str, Any], step: int, device: torch.device) -> dict[str, Any]:
    """Settings of ``ivon_step`` with every number as a float64 scalar tensor; names, flags and None as they are.

    Args:
        settings: From ``vlora.ivon.groups.step_settings``.
        step: 1-based update number.
        device: Where the parameters are.
    """
    numbers = {"step": step, **settings}
    return {
        name: torch.tensor(float(value), dtype=torch.float64, device=device)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else value
        for name, value in numbers.items()
    }


def compiled_step_(
    param: Tensor,
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    product: Tensor | None,
    numbers: dict[str, Any],
) -> None:
    """Update state and parameter in place; see ``vlora.ivon.step.ivon_step``.

    The first call compiles, which takes seconds to a minute; torch keeps the result on disk for later processes.

    Args:
        param: Parameter, which holds the draw and then the new mean. Shape ``(n,)``, as all tensors here.
        mean: Current m.
        momentum: Current gradient average.
        hess: Current h, as the noise was drawn with.
        grad: Final gradient, in the dtype of the state.
        product: Mean product over draws collected earlier; None if the parameter holds the only draw.
        numbers: From ``step_numbers``.
    """
    if mean.numel():
        # .data is no view of anything: the size of what a vector is a view of would compile again
        plain = [None if each is None else each.data for each in (param, mean, momentum, hess, grad, product)]
        _compiled(BACKEND)(*plain, numbers)


@cache
def _compiled(backend: str) -> Callable[..., None]:
    return torch.compile(_step_in_place, dynamic=True, fullgraph=True, backend=backend)


def _step_in_place(
    param: Tensor,
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    product: Tensor | None,
    numbers: dict[str, Any],
) -> None:
    if product is None:
        product = grad * grad if numbers["hess_approx"] == "gradsq" else (param.to(mean.dtype) - mean) * grad
    new = ivon_step(mean, momentum, hess, grad, product, **numbers)
    for target, value in zip((mean, momentum, hess), new, strict=True):
        target.copy_(value)
    param.copy_(mean)
