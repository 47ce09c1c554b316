"""Putting posterior draws into the parameters of an optimizer's groups, and the mean back.

Functions of ``(groups, state)`` as a torch optimizer holds them. ``group["sampled"]`` lists the positions of the
parameters that hold a draw; ``group["draw"]`` and ``group["eval_draw"]`` number the draws.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.blocks import Room, block_entries, flat_blocks, row_groups
from vlora.ivon.draws import noise_seed
from vlora.ivon.kernels import draw_, make_scratch
from vlora.ivon.low_precision import is_coded, read_state
from vlora.ivon.rounding import is_coarse, rounding_seed, stochastic_round
from vlora.ivon.shard_noise import fill_noise_
from vlora.ivon.shards import drop_gathered, local, local_state
from vlora.ivon.state import adopt_changed_params, ensure_states
from vlora.ivon.step import posterior_std

__all__ = [
    "advance",
    "positions",
    "starts_step",
    "take_grads",
    "write_draw",
    "write_mean",
]

Groups = list[dict[str, Any]]
State = dict[Tensor, dict[str, Any]]

COUNTERS = {"train": "draw", "eval": "eval_draw"}


def positions(groups: Groups) -> Iterator[tuple[int, dict[str, Any], int, Tensor]]:
    """Every parameter as (index over all groups, group, position in its group, parameter)."""
    index = 0
    for group in groups:
        for position, param in enumerate(group["params"]):
            yield index, group, position, param
            index += 1


@torch.inference_mode(False)  # state born inside inference_mode could not be updated outside it
@torch.no_grad()
def write_draw(groups: Groups, state: State, stream: str, *, ahead: int = 0) -> None:
    """Write ``mean + std * noise`` into every trainable parameter that holds the mean.

    A parameter that is not its rounded mean any more was loaded with other weights, which become the mean.

    Args:
        groups: Parameter groups of the optimizer.
        state: Its state; made for parameters that have none.
        stream: ``"train"`` or ``"eval"``, which numbers its draws separately.
        ahead: Which draw after the next one: this process's place among those that draw for one step.
    """
    undrawn, todo = list(_undrawn(groups)), []
    ensure_states([(state[param], param, group) for _, group, _, param in undrawn])
    for index, group, position, param in undrawn:
        seed = noise_seed(group["seed"], stream, group[COUNTERS[stream]] + ahead, index)
        todo.append(_Draw(local(param), local_state(state[param]), group, position, seed, param))
    adopt_changed_params([(draw.param, draw.state) for draw in todo])
    buckets: dict[Any, list[_Draw]] = {}
    for draw in todo:
        key = (
            id(draw.group),
            draw.param.device,
            draw.param.dtype,
            draw.state["mean"].dtype,
            _is_special(draw),
        )
        buckets.setdefault(key, []).append(draw)
    for bucket in buckets.values():
        group, generator = bucket[0].group, torch.Generator(device=bucket[0].param.device)
        group["sampled"].extend(draw.position for draw in bucket)
        plain = group["foreach"] and not _is_special(bucket[0])
        draw_bucket = _draw_foreach if plain else _draw_reference
        draw_bucket(bucket, generator, {"ess": group["ess"], "weight_decay": group["weight_decay"]})
    drop_gathered([draw.owner for draw in todo])


@dataclass(eq=False, slots=True)
class _Draw:
    """One parameter that is to hold a draw; of a sharded one, the local part."""

    param: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    position: int
    seed: int
    owner: Tensor
    """The parameter that ``param`` is, or is the local part of."""


def _undrawn(groups: Groups) -> Iterator[tuple[int, dict[str, Any], int, Tensor]]:
    held = {id(group): set(group["sampled"]) for group in groups}
    for item in positions(groups):
        if item[3].requires_grad and item[2] not in held[id(item[1])]:
            yield item


def _draw_foreach(bucket: list[_Draw], generator: torch.Generator, settings: dict[str, float]) -> None:
    """Large parameters have their noise made in themselves, where their dtype is that of the state."""
    limit, room = block_entries(bucket[0].param.device), Room()
    scratch = make_scratch(bucket[0].state["mean"], limit)
    for rows in row_groups([draw.param for draw in bucket], limit):
        some = [bucket[row] for row in rows]
        params = [draw.param for draw in some]
        means, hesses = ([draw.state[key] for draw in some] for key in ("mean", "hess"))
        in_place = len(some) == 1 and params[0].dtype == means[0].dtype
        noises = params if in_place else room.shaped(means)
        for draw, noise in zip(some, noises, strict=True):
            fill_noise_(noise, draw.owner, draw.seed, generator)
        for noise, mean, hess in flat_blocks([noises, means, hesses], limit, writes=1):
            draw_(noise, mean, hess, scratch, **settings)
        if not in_place:
            torch._foreach_copy_(params, noises)


def _draw_reference(bucket: list[_Draw], generator: torch.Generator, settings: dict[str, float]) -> None:
    for draw in bucket:
        mean = draw.state["mean"]
        noise = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)
        fill_noise_(noise, draw.owner, draw.seed, generator)
        values = noise.mul_(posterior_std(read_state(draw.state, "hess"), **settings)).add_(mean)
        if _is_rounded_stochastically(draw):
            values = stochastic_round(values, draw.param.dtype, rounding_seed(draw.seed))
        draw.param.copy_(values)


def _is_special(draw: _Draw) -> bool:
    """Whether the draw is to be made for this parameter alone, from decoded state or with stochastic rounding."""
    return is_coded(draw.state) or _is_rounded_stochastically(draw)


def _is_rounded_stochastically(draw: _Draw) -> bool:
    return draw.group["stochastic_rounding"] and is_coarse(draw.param, draw.state)


@torch.no_grad()
def write_mean(groups: Groups, state: State) -> None:
    """Write the mean into every parameter that holds a draw."""
    written = [group["params"][position] for group in groups for position in group["sampled"]]
    for param in written:
        local(param).copy_(local(state[param]["mean"]))
    for group in groups:
        group["sampled"] = []
    drop_gathered(written)


def advance(groups: Groups, stream: str, by: int = 1) -> None:
    """Number the next draw of ``stream``, after ``by`` draws."""
    for group in groups:
        group[COUNTERS[stream]] += by


def take_grads(groups: Groups) -> dict[Tensor, Tensor]:
    """Detach all gradients from their parameters and return them."""
    grads = {param: param.grad for *_, param in positions(groups) if param.grad is not None}
    for param in grads:
        param.grad = None
    return grads


def starts_step(groups: Groups, state: State) -> bool:
    """Whether gradients were taken at a posterior draw, so that a step can be made of them.

    Returns:
        False for the step by which ``torch.distributed.checkpoint`` asks a new optimizer for its state, before it loads
        a checkpoint into it: lr 0 and zero gradients. The state is made then, and nothing else is to be done.

    Raises:
        TrainingError: If no trainable parameter holds a draw, or one with a gradient does not.
    """
    if _fill_empty_state(groups, state):
        return False
    _require_drawn_grads(groups)
    return True


@torch.no_grad()
def _fill_empty_state(groups: Groups, state: State) -> bool:
    params = [(group, param) for _, group, _, param in positions(groups) if param.requires_grad]
    if state or any(float(group["lr"]) != 0 for group in groups):
        return False
    if any(param.grad is None or local(param.grad).any() for _, param in params):
        return False
    ensure_states([(state[param], param, group) for group, param in params])
    return True


def _require_drawn_grads(groups: Groups) -> None:
    held = {id(group): set(group["sampled"]) for group in groups}
    none_held = not any(held.values())
    for _, group, position, param in positions(groups):
        undrawn = param.grad is not None and position not in held[id(group)]
        if param.requires_grad and (none_held or undrawn):
            raise TrainingError(
                "step() needs gradients taken at a posterior draw, but none was made: call optimizer.train() before "
                "the forward pass, or wrap forward and backward in optimizer.sampled_params(train=True)"
            )
