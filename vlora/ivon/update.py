"""From final gradients to new state: gather what a step needs, refuse what is not finite, update in place."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.draws import DrawAverages
from vlora.ivon.foreach import foreach_ivon_step_, largest_entries
from vlora.ivon.groups import step_settings
from vlora.ivon.sampling import Groups, State, positions
from vlora.ivon.state import by_device
from vlora.ivon.step import ivon_step

__all__ = ["Entry", "all_finite", "apply_update", "gather_entries"]


@dataclass(eq=False)
class Entry:
    """One parameter that takes part in a step; gradient and product are in the dtype of its state."""

    param: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    grad: Tensor
    product: Tensor


@torch.no_grad()
def gather_entries(
    groups: Groups, state: State, averages: DrawAverages | None = None, grad_scale: Tensor | None = None
) -> list[Entry]:
    """Every parameter with a gradient, with its product ``noise * grad`` or ``grad^2``.

    Args:
        groups: Parameter groups.
        state: State of the optimizer.
        averages: Draws collected earlier; None if ``p.grad`` was taken at the draw that the parameters hold now.
        grad_scale: Loss scale that is still on the gradients, from GradScaler.

    Raises:
        TrainingError: If a gradient is sparse.
    """
    entries = []
    for _, group, _, param in positions(groups):
        if param.grad is None or "mean" not in state.get(param, {}):
            continue
        mean = state[param]["mean"]
        grad = _final_grad(param, mean.dtype, grad_scale)
        gradsq = group["hess_approx"] == "gradsq"
        if averages is not None:
            product = averages.product(param, grad, power=2 if gradsq else 1)
        elif gradsq:
            product = grad * grad
        else:  # the realised noise, after rounding to the parameter's dtype
            product = (param.detach().to(mean.dtype) - mean).mul_(grad)
        entries.append(Entry(param, state[param], group, grad, product))
    return entries


def _final_grad(param: Tensor, dtype: torch.dtype, grad_scale: Tensor | None) -> Tensor:
    assert param.grad is not None
    if param.grad.is_sparse:
        raise TrainingError(
            f"IVON needs dense gradients, got a sparse one of shape {tuple(param.shape)}: use sparse=False"
        )
    grad = param.grad.detach().to(dtype)
    return grad if grad_scale is None else grad / grad_scale.to(grad.device, dtype)


def all_finite(entries: Sequence[Entry], groups: Groups) -> bool:
    """Whether every gradient is finite; with one device synchronisation for each device.

    Returns:
        False if one is not and its group says ``skip_nonfinite``; the skip is then counted in every group.

    Raises:
        TrainingError: If one is not, naming its group and shape.
    """
    for indices in by_device([entry.grad for entry in entries]):
        largest = largest_entries([entries[i].grad for i in indices]).tolist()
        for i, value in zip(indices, largest, strict=True):
            if not math.isfinite(value):
                _refuse_nonfinite(entries[i], groups)
                return False
    return True


def _refuse_nonfinite(entry: Entry, groups: Groups) -> None:
    if entry.group["skip_nonfinite"]:
        for group in groups:
            group["skipped_steps"] += 1
        return
    number = next(i for i, group in enumerate(groups) if group is entry.group)
    raise TrainingError(
        f"expected finite gradients, got NaN or infinity in parameter group {number}, shape "
        f"{tuple(entry.param.shape)}; mean and Hessian are unchanged. Check the data and the loss, lower lr, or pass "
        "skip_nonfinite=True"
    )


@torch.no_grad()
def apply_update(groups: Groups, entries: Sequence[Entry]) -> None:
    """Update the state of all entries in place and write the new means into their parameters.

    Args:
        groups: Parameter groups with the hyper-parameters.
        entries: What to update. Their products are overwritten.
    """
    for group in groups:
        buckets: dict[Any, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.group is group:
                entry.state["step"] += 1
                buckets[entry.grad.device, entry.grad.dtype].append(entry)
        update_bucket = _apply_foreach if group["foreach"] else _apply_reference
        for bucket in buckets.values():
            update_bucket(bucket, step_settings(group))
    for entry in entries:
        entry.param.copy_(entry.state["mean"])


def _apply_foreach(bucket: list[Entry], settings: dict[str, Any]) -> None:
    foreach_ivon_step_(
        [entry.state["mean"] for entry in bucket],
        [entry.state["momentum"] for entry in bucket],
        [entry.state["hess"] for entry in bucket],
        [entry.grad for entry in bucket],
        [entry.product for entry in bucket],
        steps=[int(entry.state["step"]) for entry in bucket],
        **settings,
    )


def _apply_reference(bucket: list[Entry], settings: dict[str, Any]) -> None:
    for entry in bucket:
        state = entry.state
        old = (state["mean"], state["momentum"], state["hess"])
        new = ivon_step(*old, entry.grad, entry.product, step=int(state["step"]), **settings)
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
