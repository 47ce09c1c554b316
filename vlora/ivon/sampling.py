"""Putting posterior draws into the parameters of an optimizer's groups, and the mean back.

Functions of ``(groups, state)`` as a torch optimizer holds them. ``group["sampled"]`` lists the positions of the
parameters that hold a draw; ``group["draw"]`` and ``group["eval_draw"]`` number the draws.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.draws import noise_seed, standard_normal
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
    held = {id(group): set(group["sampled"]) for group in groups}
    todo = [item for item in positions(groups) if item[3].requires_grad and item[2] not in held[id(item[1])]]
    for _, group, _, param in todo:
        ensure_state(state[param], param, group["hess_init"])
    adopt_changed_params([(param, state[param]) for *_, param in todo])
    for index, group, position, param in todo:
        mean, hess = state[param]["mean"], state[param]["hess"]
        seed = noise_seed(group["seed"], stream, group[COUNTERS[stream]], index)
        std = posterior_std(hess, ess=group["ess"], weight_decay=group["weight_decay"])
        group["sampled"].append(position)
        param.copy_(standard_normal(mean, seed).mul_(std).add_(mean))


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
