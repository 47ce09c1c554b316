"""Training the adapters that are merged: IVON.auto with curvature gathered on the way, or AdamW with one pass after it.

A trained adapter is one safetensors file: per module ``a``, ``b``, ``hess_a``, ``hess_b`` (IVON), ``input_gram``,
``output_gram``, ``activation_gram``; and the head.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from benchmarks.merge_quality.network import Network
from benchmarks.merge_quality.tasks import Task
from benchmarks.posterior_quality.tasks import Rows
from vlora import IVON
from vlora.curvature import Votes, gathering

BATCH, WARMUP = 16, 0.06


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained."""

    optimizer: str = "ivon"
    lr: float = 1e-3
    epochs: int = 5
    seed: int = 0
    """Order of the rows and noise of the draws."""
    start: int = 0
    """Seed of A."""
    own_head: bool = False
    """Whether the head trains too."""
    votes: Votes = "equal"
    """What a visit counts in the Grams that are gathered on the way."""
    joined: bool = False
    """Whether a row's tokens are added up before they are squared there."""


def fit_head(states: Tensor, label: Tensor, num_classes: int, decay: float = 1e-2) -> Tensor:
    """A linear probe: logistic regression on fixed states, weights and biases ``(C, 385)``."""
    head = torch.zeros(num_classes, states.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(logits(states, head), label) + decay * head[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head.detach()


def logits(states: Tensor, head: Tensor) -> Tensor:
    """Class scores ``(N, C)`` of states ``(N, 384)`` under a head ``(C, 385)``."""
    return linear(states, head[:, :-1], head[:, -1])


def train_adapter(
    parts: list[tuple[Task, Tensor]],
    recipe: Recipe,
    ancestor: dict[str, Tensor] | None = None,
    pull: dict[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train one adapter on one task, or on several at once (joint training), each with its head.

    Args:
        parts: Tasks, and where their heads start.
        recipe: How.
        ancestor: Tensors of an adapter whose factors this one starts from.
        pull: Precision S_0 / N of a Gaussian around them, ``<module>.a`` and ``<module>.b``, whose negative logarithm
            joins the loss of a draw.

    Returns:
        Tensors and facts.
    """
    network = Network(recipe.start)
    if ancestor is not None:
        network.load(ancestor)
    heads = [nn.Parameter(head.clone(), requires_grad=recipe.own_head) for _, head in parts]
    trained = [*network.factors(), *(head for head in heads if recipe.own_head)]
    steps = recipe.epochs * sum(math.ceil(len(task.train) / BATCH) for task, _ in parts)
    optimizer = _optimizer(trained, recipe, steps)
    started = time.process_time()
    settings = {"seed": recipe.seed, "votes": recipe.votes, "joined": recipe.joined}
    with gathering(network.peft, activations=True, **settings) as stream:
        penalty = None if pull is None or ancestor is None else _pull(network, ancestor, pull)
        loss = _fit(network, [task for task, _ in parts], heads, optimizer, steps, recipe, penalty)
    if isinstance(optimizer, IVON):
        optimizer.eval()
        curvature = stream.result()
    else:
        curvature = measured(network, parts[0][0].train, heads[0])
    tensors = {f"head.{i}": head.detach().clone() for i, head in enumerate(heads)}
    tensors |= _tensors(network, optimizer) | {
        k.removeprefix("base_model.model."): v for k, v in curvature.items()
    }
    return tensors, {"train_loss": loss, "steps": steps, "cpu_seconds": time.process_time() - started}


def measured(network: Network, rows: Rows, head: Tensor, **options: Any) -> dict[str, Tensor]:
    """Exact Grams in one pass over rows at the weights as they are."""
    with gathering(
        network.peft, draws=None, activations=True, votes="equal", **{"joined": False, **options}
    ) as stream:
        for i in range(0, len(rows), 32):
            states = network(rows.hidden[i : i + 32], rows.mask[i : i + 32])
            cross_entropy(logits(states, head.detach()), rows.label[i : i + 32], reduction="sum").backward()
    network.zero_grad()
    return stream.result()


def _optimizer(trained: list[nn.Parameter], recipe: Recipe, steps: int) -> Any:
    if recipe.optimizer == "ivon":
        settings = {"grad_batch_size": BATCH, "max_grad_norm": None, "seed": recipe.seed, "lr": recipe.lr}
        return IVON.auto(trained, num_steps=steps, **settings)  # AdamW is not clipped either
    return torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)


def _fit(
    network: Network,
    tasks: list[Task],
    heads: list[nn.Parameter],
    optimizer: Any,
    steps: int,
    recipe: Recipe,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """A warm-up and a cosine; returns the mean loss of the last 20 steps."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / (WARMUP * steps), 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    losses = []
    for number, part in _batches(tasks, recipe):
        if isinstance(optimizer, IVON):
            optimizer.train()
        rows = tasks[number].train
        states = network(rows.hidden[part], rows.mask[part])
        loss = cross_entropy(logits(states, heads[number]), rows.label[part])
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / len(losses[-20:])


def _pull(network: Network, ancestor: dict[str, Tensor], pull: dict[str, Tensor]) -> Callable[[], Tensor]:
    """1/2 |theta - m_0|^2_{S_0 / N} at the weights that the network holds."""
    rows = []
    for name, layer in network.adapted.items():
        for side, factor in (("a", layer.lora_A["default"].weight), ("b", layer.lora_B["default"].weight)):
            rows.append((factor, ancestor[f"{name}.{side}"], pull[f"{name}.{side}"]))
    return lambda: 0.5 * torch.stack([(s * (p - m).square()).sum() for p, m, s in rows]).sum()


def _batches(tasks: list[Task], recipe: Recipe) -> Iterator[tuple[int, Tensor]]:
    """Number of the task and rows of the batch; batches of all tasks in random order."""
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        every = [
            (number, part)
            for number, task in enumerate(tasks)
            for part in torch.randperm(len(task.train), generator=generator).split(BATCH)
        ]
        for index in torch.randperm(len(every), generator=generator).tolist():
            yield every[index]


def _tensors(network: Network, optimizer: Any) -> dict[str, Tensor]:
    """``<module>.a`` and the others; h of a factor beside it where there is a posterior."""
    found: dict[str, Tensor] = {}
    for name, layer in network.adapted.items():
        stem = name.removeprefix("base_model.model.")
        for side, factor in (("a", layer.lora_A["default"].weight), ("b", layer.lora_B["default"].weight)):
            found[f"{stem}.{side}"] = factor.detach().clone()
            if isinstance(optimizer, IVON):
                state = optimizer.posterior_state(factor)
                found[f"{stem}.{side}"] = state["mean"].clone()
                found[f"{stem}.hess_{side}"] = state["hess"].clone()
                found[f"{stem}.decay_{side}"] = torch.tensor(float(state["weight_decay"]))
    return found
