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
from vlora.ivon.blocks import block_entries, flat_blocks, row_groups
from vlora.ivon.draws import fill_standard_normal_, noise_seed
from vlora.ivon.kernels import draw_, make_scratch
from vlora.ivon.state import adopt_changed_params, ensure_state
from vlora.ivon.step import posterior_std

__all__ = ["advance", "positions", "require_drawn_grads", "take_grads", "write_draw", "write_mean"]

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
def write_draw(groups: Groups, state: State, stream: str) -> None:
    """Write ``mean + std * noise`` into every trainable parameter that holds the mean.

    A parameter that is not its rounded mean any more was loaded with other weights, which become the mean.

    Args:
        groups: Parameter groups of the optimizer.
        state: Its state; made for parameters that have none.
        stream: ``"train"`` or ``"eval"``, which numbers its draws separately.
    """
    todo = []
    for index, group, position, param in _undrawn(groups):
        ensure_state(state[param], param, group["hess_init"])
        seed = noise_seed(group["seed"], stream, group[COUNTERS[stream]], index)
        todo.append(_Draw(param, state[param], group, position, seed))
    adopt_changed_params([(draw.param, draw.state) for draw in todo])
    buckets: dict[Any, list[_Draw]] = {}
    for draw in todo:
        key = (id(draw.group), draw.param.device, draw.param.dtype, draw.state["mean"].dtype)
        buckets.setdefault(key, []).append(draw)
    for bucket in buckets.values():
        group, generator = bucket[0].group, torch.Generator(device=bucket[0].param.device)
        group["sampled"].extend(draw.position for draw in bucket)
        draw_bucket = _draw_foreach if group["foreach"] else _draw_reference
        draw_bucket(bucket, generator, {"ess": group["ess"], "weight_decay": group["weight_decay"]})


@dataclass(eq=False, slots=True)
class _Draw:
    """One parameter that is to hold a draw."""

    param: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    position: int
    seed: int


def _undrawn(groups: Groups) -> Iterator[tuple[int, dict[str, Any], int, Tensor]]:
    held = {id(group): set(group["sampled"]) for group in groups}
    for item in positions(groups):
        if item[3].requires_grad and item[2] not in held[id(item[1])]:
            yield item


def _draw_foreach(bucket: list[_Draw], generator: torch.Generator, settings: dict[str, float]) -> None:
    """The noise is made in the parameters themselves where their dtype is that of the state."""
    limit = block_entries(bucket[0].param.device)
    scratch = make_scratch(bucket[0].state["mean"], limit)
    for rows in row_groups([draw.param for draw in bucket], limit):
        some = [bucket[row] for row in rows]
        params = [draw.param for draw in some]
        means, hesses = ([draw.state[key] for draw in some] for key in ("mean", "hess"))
        in_place = params[0].dtype == means[0].dtype
        noises = params if in_place else [torch.empty_like(mean) for mean in means]
        for draw, noise in zip(some, noises, strict=True):
            fill_standard_normal_(noise, draw.seed, generator)
        for noise, mean, hess in flat_blocks([noises, means, hesses], limit, writes=1):
            draw_(noise, mean, hess, scratch, **settings)
        if not in_place:
            torch._foreach_copy_(params, noises)


def _draw_reference(bucket: list[_Draw], generator: torch.Generator, settings: dict[str, float]) -> None:
    for draw in bucket:
        mean = draw.state["mean"]
        noise = torch.empty(mean.shape, dtype=mean.dtype, device=mean.device)
        fill_standard_normal_(noise, draw.seed, generator)
        draw.param.copy_(noise.mul_(posterior_std(draw.state["hess"], **settings)).add_(mean))


@torch.no_grad()
def write_mean(groups: Groups, state: State) -> None:
    """Write the mean into every parameter that holds a draw."""
    for group in groups:
        for position in group["sampled"]:
            param = group["params"][position]
            param.copy_(state[param]["mean"])
        group["sampled"] = []


def advance(groups: Groups, stream: str) -> None:
    """Number the next draw of ``stream``."""
    for group in groups:
        group[COUNTERS[stream]] += 1


def take_grads(groups: Groups) -> dict[Tensor, Tensor]:
    """Detach all gradients from their parameters and return them."""
    grads = {param: param.grad for *_, param in positions(groups) if param.grad is not None}
    for param in grads:
        param.grad = None
    return grads


def require_drawn_grads(groups: Groups) -> None:
    """Refuse a step whose gradients were not taken at a posterior draw.

    Raises:
        TrainingError: If no trainable parameter holds a draw, or one with a gradient does not.
    """
    held = {id(group): set(group["sampled"]) for group in groups}
    none_held = not any(held.values())
    for _, group, position, param in positions(groups):
        undrawn = param.grad is not None and position not in held[id(group)]
        if param.requires_grad and (none_held or undrawn):
            raise TrainingError(
                "step() needs gradients taken at a posterior draw, but none was made: call optimizer.train() before "
                "the forward pass, or wrap forward and backward in optimizer.sampled_params(train=True)"
            )
