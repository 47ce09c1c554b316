"""From final gradients to new state: gather what a step needs, refuse what is not finite, update in place.

Work goes block by block (``vlora.ivon.blocks``): casts, products and temporaries exist for one block at a time.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.blocks import block_entries, flat_blocks
from vlora.ivon.compiled import COMPILED_BLOCK_ENTRIES, compiled_step_, step_numbers
from vlora.ivon.draws import DrawAverages
from vlora.ivon.groups import step_settings
from vlora.ivon.kernels import all_norms_finite, ivon_step_, make_scratch, product_of_draw
from vlora.ivon.low_precision import CODED, hess_shift, is_coded, read_state, write_state
from vlora.ivon.noise import NoiseTally, controlled
from vlora.ivon.rounding import is_coarse, realised_product
from vlora.ivon.sampling import Groups, State, positions
from vlora.ivon.shards import drop_gathered, local, local_state, lowest_of_ranks
from vlora.ivon.state import by_device
from vlora.ivon.step import ivon_step

__all__ = ["Entry", "all_finite", "apply_update", "drawn_products", "gather_entries", "overflowed"]


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
    product = averages.take_product(entry.owner, norm, power=2 if _uses_squares(entry) else 1)
    return torch.zeros_like(mean) if product is None else product


def _rounded_product(entry: Entry, grad_scale: Tensor | None) -> Tensor:
    grad = _unscaled(entry.grad, entry.state["mean"].dtype, grad_scale)
    return realised_product(entry.param, entry.state, entry.group, grad)


def _uses_squares(entry: Entry) -> bool:
    return entry.group["hess_approx"] == "gradsq"


def _is_rounded(entry: Entry) -> bool:
    """Whether the noise of this draw went through a coarser number format, and the estimate of h depends on it."""
    return not _uses_squares(entry) and is_coarse(entry.param, entry.state)


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
            product = product_of_draw(entry.param, mean, grad, gradsq=_uses_squares(entry))
            yield entry.owner, grad, product


def overflowed(groups: Groups, found_inf: Tensor | None) -> bool:
    """Whether GradScaler (if it is used) found an overflow, on any process that holds parts of the parameters."""
    if found_inf is None:
        return False
    return lowest_of_ranks(0 if found_inf else 1, [param for *_, param in positions(groups)]) == 0


def all_finite(entries: Sequence[Entry], groups: Groups) -> bool:
    """Whether every gradient is finite, on all processes that share it; with one synchronisation for each device.

    Returns:
        False if one is not and its group says ``skip_nonfinite``; the skip is then counted in every group.

    Raises:
        TrainingError: If one is not, naming its group and shape.
    """
    bad = lowest_of_ranks(_first_nonfinite(entries), [entry.owner for entry in entries])
    if bad == len(entries):
        return True
    _refuse_nonfinite(entries[bad], groups)
    return False


def _first_nonfinite(entries: Sequence[Entry]) -> int:
    """Position of an entry whose gradient, as far as this process holds it, is not finite; their number if none is."""
    for indices in by_device([entry.grad for entry in entries]):
        certain = all_norms_finite([entries[i].grad for i in indices]).tolist()
        for i, finite in zip(indices, certain, strict=True):
            if not finite and not entries[i].grad.isfinite().all():  # not just a norm that overflowed
                return i
    return len(entries)


def _refuse_nonfinite(entry: Entry, groups: Groups) -> None:
    if entry.group["skip_nonfinite"]:
        for group in groups:
            group["skipped_steps"] += 1
        return
    number = next(i for i, group in enumerate(groups) if group is entry.group)
    raise TrainingError(
        f"expected finite gradients, got NaN or infinity in parameter group {number}, shape "
        f"{tuple(entry.owner.shape)}; mean and Hessian are unchanged. Check the data and the loss, lower lr, or pass "
        "skip_nonfinite=True"
    )


@torch.no_grad()
def apply_update(
    groups: Groups,
    entries: Sequence[Entry],
    grad_scale: Tensor | None = None,
    tally: NoiseTally | None = None,
) -> None:
    """Update the state of all entries in place and write the new means into their parameters.

    Args:
        groups: Parameter groups with the hyper-parameters.
        entries: What to update.
        grad_scale: Loss scale to divide the gradients by.
        tally: Takes in what the controller of the noise needs to know; None if no group is controlled.
    """
    for group in groups:
        own = [entry for entry in entries if entry.group is group]
        if not own:
            continue
        torch._foreach_add_([entry.state["step"] for entry in own], torch.tensor(1.0))
        update_bucket = _apply_foreach if group["foreach"] else _apply_reference
        if group["compiled"]:
            update_bucket = _apply_compiled
        for bucket in _buckets(own):
            own_tally = tally if controlled(group) else None
            if is_coded(bucket[0].state):
                _apply_coded(bucket[0], update_bucket, step_settings(group), grad_scale, own_tally)
            else:
                update_bucket(bucket, step_settings(group), grad_scale, own_tally)
        updated = {entry.position for entry in own}
        group["sampled"] = [position for position in group["sampled"] if position not in updated]
    drop_gathered([entry.owner for entry in entries])


def _buckets(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries of one group that share device, dtypes, number of updates and kind of product; coded ones alone."""
    buckets: dict[Any, list[Entry]] = {}
    for entry in entries:
        dtypes = (entry.grad.device, entry.grad.dtype, entry.param.dtype, entry.state["mean"].dtype)
        alone = id(entry) if is_coded(entry.state) else None
        key = (*dtypes, int(entry.state["step"]), entry.product is None, alone)
        buckets.setdefault(key, []).append(entry)
    return list(buckets.values())


def _apply_coded(
    entry: Entry,
    update_bucket: Callable[[list[Entry], dict[str, Any], Tensor | None, NoiseTally | None], None],
    settings: dict[str, Any],
    grad_scale: Tensor | None,
    tally: NoiseTally | None,
) -> None:
    """Decode 8-bit state, update, encode it again."""
    values = {**entry.state, **{key: read_state(entry.state, key) for key in CODED}}
    update_bucket([replace(entry, state=values)], settings, grad_scale, tally)
    step, shift = int(entry.state["step"]), hess_shift(entry.group)
    write_state(entry.state, values["momentum"], values["hess"], shift=shift, step=step)


def _columns(bucket: list[Entry]) -> list[list[Tensor]]:
    """What a step writes (parameter, mean, momentum, h), the gradient, and the product if it was collected."""
    columns = [
        [entry.param for entry in bucket],
        *([entry.state[key] for entry in bucket] for key in ("mean", "momentum", "hess")),
        [entry.grad for entry in bucket],
    ]
    if bucket[0].product is not None:
        columns.append([entry.product for entry in bucket if entry.product is not None])
    return columns


def _apply_foreach(
    bucket: list[Entry], settings: dict[str, Any], grad_scale: Tensor | None, tally: NoiseTally | None
) -> None:
    columns, step, gradsq = _columns(bucket), int(bucket[0].state["step"]), _uses_squares(bucket[0])
    limit = block_entries(columns[0][0].device)
    scratch = make_scratch(columns[1][0], limit)
    for param, mean, momentum, hess, grad, *collected in flat_blocks(columns, limit, writes=4):
        final = _unscaled(grad, mean.dtype, grad_scale)
        if collected:
            product = collected[0]
        else:
            room = scratch[2, : mean.numel()]
            if tally is not None:
                tally.add_draw(param, mean, final, out=room)
            product = product_of_draw(param, mean, final, gradsq=gradsq, out=room)
        ivon_step_(mean, momentum, hess, final, product, scratch, step=step, **settings)
        param.copy_(mean)
        if tally is not None:
            tally.add_hess(bucket[0].group, hess)


def _apply_compiled(
    bucket: list[Entry], settings: dict[str, Any], grad_scale: Tensor | None, tally: NoiseTally | None
) -> None:
    columns = _columns(bucket)
    numbers = step_numbers(settings, int(bucket[0].state["step"]), columns[0][0].device)
    for param, mean, momentum, hess, grad, *collected in flat_blocks(
        columns, COMPILED_BLOCK_ENTRIES, writes=4
    ):
        product = collected[0] if collected else None
        final = _unscaled(grad, mean.dtype, grad_scale)
        if tally is not None and product is None:
            tally.add_draw(param, mean, final)
        compiled_step_(param, mean, momentum, hess, final, product, numbers)
        if tally is not None:
            tally.add_hess(bucket[0].group, hess)


def _unscaled(grad: Tensor, dtype: torch.dtype, grad_scale: Tensor | None) -> Tensor:
    """Gradient in the dtype of the state and without the loss scale; never written to."""
    grad = grad.to(dtype)
    return grad if grad_scale is None else grad / grad_scale.to(grad.device, dtype)


def _apply_reference(
    bucket: list[Entry], settings: dict[str, Any], grad_scale: Tensor | None, tally: NoiseTally | None
) -> None:
    for entry in bucket:
        state = entry.state
        old = (state["mean"], state["momentum"], state["hess"])
        grad = _unscaled(entry.grad, state["mean"].dtype, grad_scale)
        product = entry.product
        if product is None:
            product = product_of_draw(entry.param, state["mean"], grad, gradsq=_uses_squares(entry))
            if tally is not None:
                tally.add_draw(entry.param, state["mean"], grad)
        new = ivon_step(*old, grad, product, step=int(state["step"]), **settings)
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
        entry.param.copy_(state["mean"])
        if tally is not None:
            tally.add_hess(entry.group, state["hess"])
