"""From final gradients to new state, in place, on the path that a group asks for.

Work goes block by block (``vlora.ivon.blocks``): casts, products and temporaries exist for one block at a time.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlora.ivon.blocks import block_entries, flat_blocks
from vlora.ivon.compiled import COMPILED_BLOCK_ENTRIES, compiled_step_, step_numbers
from vlora.ivon.gradients import Entry, unscaled, uses_squares
from vlora.ivon.groups import step_settings
from vlora.ivon.kernels import ivon_step_, make_scratch, product_of_draw
from vlora.ivon.low_precision import CODED, hess_shift, is_coded, read_state, write_state
from vlora.ivon.noise import NoiseTally, controlled
from vlora.ivon.sampling import Groups
from vlora.ivon.shards import drop_gathered
from vlora.ivon.step import ivon_step

__all__ = ["apply_update"]


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
    columns, step, gradsq = _columns(bucket), int(bucket[0].state["step"]), uses_squares(bucket[0])
    limit = block_entries(columns[0][0].device)
    scratch = make_scratch(columns[1][0], limit)
    for param, mean, momentum, hess, grad, *collected in flat_blocks(columns, limit, writes=4):
        final = unscaled(grad, mean.dtype, grad_scale)
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
        final = unscaled(grad, mean.dtype, grad_scale)
        if tally is not None and product is None:
            tally.add_draw(param, mean, final)
        compiled_step_(param, mean, momentum, hess, final, product, numbers)
        if tally is not None:
            tally.add_hess(bucket[0].group, hess)


def _apply_reference(
    bucket: list[Entry], settings: dict[str, Any], grad_scale: Tensor | None, tally: NoiseTally | None
) -> None:
    for entry in bucket:
        state = entry.state
        old = (state["mean"], state["momentum"], state["hess"])
        grad = unscaled(entry.grad, state["mean"].dtype, grad_scale)
        product = entry.product
        if product is None:
            product = product_of_draw(entry.param, state["mean"], grad, gradsq=uses_squares(entry))
            if tally is not None:
                tally.add_draw(entry.param, state["mean"], grad)
        new = ivon_step(*old, grad, product, step=int(state["step"]), **settings)
        for target, value in zip(old, new, strict=True):
            target.copy_(value)
        entry.param.copy_(state["mean"])
        if tally is not None:
            tally.add_hess(entry.group, state["hess"])
