"""What a step starts from: every parameter's final gradient and product, refused if it is not finite."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.draws import DrawAverages
from vlora.ivon.faults import nonfinite_cause
from vlora.ivon.kernels import gradient_norms, product_of_draw
from vlora.ivon.noise import NoiseTally, controlled
from vlora.ivon.rounding import is_coarse, realised_product
from vlora.ivon.sampling import Groups, State, positions
from vlora.ivon.shards import is_sharded, local, local_state, lowest_of_ranks, sum_of_ranks
from vlora.ivon.state import by_device

__all__ = [
    "Entry",
    "drawn_from",
    "drawn_products",
    "finite_norm",
    "gather_entries",
    "overflowed",
    "unscaled",
    "uses_squares",
]


@dataclass(eq=False, slots=True)
class Entry:
    """One parameter that takes part in a step; of a sharded one, the local part of everything."""

    param: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    position: int
    """Of the parameter in its group."""
    grad: Tensor
    """``param.grad``, in its own dtype and with the loss scale still on it."""
    product: Tensor | None
    """Mean product over draws collected earlier; None if ``grad`` was taken at the draw that the parameter holds."""
    owner: Tensor
    """The parameter that ``param`` is, or is the local part of."""


@torch.no_grad()
def gather_entries(
    groups: Groups, state: State, averages: DrawAverages | None = None, grad_scale: Tensor | None = None
) -> list[Entry]:
    """Every parameter with a gradient, with its product ``noise * grad`` or ``grad^2`` if draws were collected.

    Args:
        groups: Parameter groups.
        state: State of the optimizer.
        averages: Draws collected earlier, whose products are taken; None if there are none.
        grad_scale: Loss scale that is still on the gradients, from GradScaler.

    Raises:
        TrainingError: If a gradient is sparse.
    """
    entries = []
    for _, group, position, param in positions(groups):
        grad = param.grad
        if grad is None or "mean" not in state.get(param, {}):
            continue
        if grad.is_sparse:
            raise TrainingError(
                f"IVON needs dense gradients, got a sparse one of shape {tuple(param.shape)}: use sparse=False"
            )
        here, grad = local(param), local(grad)
        entry = Entry(here, local_state(state[param]), group, position, grad, None, owner=param)
        if averages is not None:
            entry.product = _collected_product(entry, averages, grad_scale)
        elif _is_rounded(entry):
            entry.product = _rounded_product(entry, grad_scale)
        entries.append(entry)
    return entries


def _collected_product(entry: Entry, averages: DrawAverages, grad_scale: Tensor | None) -> Tensor:
    mean = entry.state["mean"]
    norm = torch.linalg.vector_norm(entry.grad, dtype=mean.dtype)
    if grad_scale is not None:
        norm = norm / grad_scale.to(norm.device, norm.dtype)
    product = averages.take_product(entry.owner, norm, power=2 if uses_squares(entry) else 1)
    return torch.zeros_like(mean) if product is None else product


def _rounded_product(entry: Entry, grad_scale: Tensor | None) -> Tensor:
    grad = unscaled(entry.grad, entry.state["mean"].dtype, grad_scale)
    return realised_product(entry.param, entry.state, entry.group, grad)


def uses_squares(entry: Entry) -> bool:
    """Whether this parameter's h comes from squared gradients."""
    return entry.group["hess_approx"] == "gradsq"


def _is_rounded(entry: Entry) -> bool:
    """Whether the noise of this draw went through a coarser number format, and the estimate of h depends on it."""
    return not uses_squares(entry) and is_coarse(entry.param, entry.state)


@torch.no_grad()
def drawn_products(entries: Sequence[Entry], tally: NoiseTally) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """``(parameter, gradient, product)`` of the draw that the parameters hold, in the dtype of the state.

    Args:
        entries: Parameters with their gradients at the draw.
        tally: Takes in the cost of the draw's noise in controlled groups.
    """
    for entry in entries:
        mean = entry.state["mean"]
        grad = entry.grad.to(mean.dtype)
        if controlled(entry.group):
            tally.add_draw(entry.param, mean, grad)
        if _is_rounded(entry):
            yield entry.owner, grad, _rounded_product(entry, None)
        else:
            product = product_of_draw(entry.param, mean, grad, gradsq=uses_squares(entry))
            yield entry.owner, grad, product


def overflowed(groups: Groups, found_inf: Tensor | None) -> bool:
    """Whether GradScaler (if it is used) found an overflow, on any process that holds parts of the parameters."""
    if found_inf is None:
        return False
    return lowest_of_ranks(0 if found_inf else 1, [param for *_, param in positions(groups)]) == 0


def finite_norm(entries: Sequence[Entry], groups: Groups) -> float | None:
    """Norm of all gradients together, loss scale still on, if they are finite on all processes that share them.

    Returns:
        None if one is not finite and its group says ``skip_nonfinite``; the skip is then counted in every group.

    Raises:
        TrainingError: If one is not, naming its group and shape.
    """
    bad, squares = _squares_of_part(entries)
    bad = lowest_of_ranks(bad, [entry.owner for entry in entries])
    if bad < len(entries):
        _refuse_nonfinite(entries, bad, groups)
        return None
    whole = sum(squares[i] for i, entry in enumerate(entries) if not is_sharded(entry.owner))
    parts = [i for i, entry in enumerate(entries) if is_sharded(entry.owner)]
    owners = [entries[i].owner for i in parts]
    size = float(sum(entries[i].grad.numel() for i in parts))
    square, held = sum_of_ranks([sum(squares[i] for i in parts), size], owners)
    copies = held / max(sum(owner.numel() for owner in owners), 1)  # of every shard that a mesh keeps
    return math.sqrt(whole + square / max(copies, 1.0))


def _squares_of_part(entries: Sequence[Entry]) -> tuple[int, dict[int, float]]:
    """Position of an entry whose gradient, as far as this process holds it, is not finite, and the squared norms.

    The number of entries if all are finite. One synchronisation for each device.
    """
    squares: dict[int, float] = {}
    for indices in by_device([entry.grad for entry in entries]):
        norms = gradient_norms([entries[i].grad for i in indices]).tolist()
        for i, norm in zip(indices, norms, strict=True):
            if not math.isfinite(norm):
                if not entries[i].grad.isfinite().all():
                    return i, squares
                norm = float(torch.linalg.vector_norm(entries[i].grad, dtype=torch.float64))  # it overflowed
            squares[i] = norm**2
    return len(entries), squares


def _refuse_nonfinite(entries: Sequence[Entry], bad: int, groups: Groups) -> None:
    entry = entries[bad]
    if entry.group["skip_nonfinite"]:
        for group in groups:
            group["skipped_steps"] += 1
        return
    number = next(i for i, group in enumerate(groups) if group is entry.group)
    raise TrainingError(
        f"expected finite gradients, got NaN or infinity in parameter group {number}, shape "
        f"{tuple(entry.owner.shape)}; mean and Hessian are unchanged. {nonfinite_cause(drawn_from(entries))}"
    )


def drawn_from(entries: Sequence[Entry]) -> Iterator[tuple[dict[str, Any], dict[str, Any], Tensor]]:
    """State, group and owner of each entry, to look for the cause of gradients that are not finite."""
    return ((entry.state, entry.group, entry.owner) for entry in entries)


def unscaled(grad: Tensor, dtype: torch.dtype, grad_scale: Tensor | None) -> Tensor:
    """Gradient in the dtype of the state and without the loss scale; never written to."""
    grad = grad.to(dtype)
    return grad if grad_scale is None else grad / grad_scale.to(grad.device, dtype)
