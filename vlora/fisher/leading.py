r"""Leading eigenvectors of an adapter's Fisher matrix, from the gradients of single examples.

.. math:: F = N \, \mathbb E_{x, y} \left[ g g^\top \right], \qquad g = \nabla_\theta \, \ell(x, y)

over all stochastic tensors at once, with labels y drawn from the model (the Fisher information) or those of the data.
One pass with hooks over linear layers; memory for three times ``directions`` gradients, whatever the number of
examples. What the result is good for is in :mod:`vlora.posterior.leading`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlora.backward import watched
from vlora.data.pieces import pieces
from vlora.errors import ConfigError, DataError
from vlora.fisher.gradients import differentiable, restored
from vlora.fisher.hooks import linear_layers
from vlora.fisher.losses import LabelKind, label_passes, read_places
from vlora.posterior.leading import Leading

__all__ = ["check_linear", "leading_fisher"]


def check_linear(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Linear, dict[str, str]]:
    """The linear layers that hold all parameters, see :func:`vlora.fisher.hooks.linear_layers`.

    Raises:
        ConfigError: A parameter lies elsewhere, so that directions cannot be measured.
    """
    layers = linear_layers(model, parameters)
    if layers:
        return layers
    linear = {id(p) for m in model.modules() if type(m) is nn.Linear for p in m.parameters(recurse=False)}
    odd = next((name for name, p in parameters.items() if id(p) not in linear), "one in several layers")
    raise ConfigError(
        "directions need weights or biases of linear layers alone, such as those of LoRA; there is also "
        f"{odd}: leave directions out"
    )


def leading_fisher(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    parameters: Mapping[str, nn.Parameter],
    num_examples: int,
    directions: int = 256,
    labels: LabelKind = "sampled",
    max_examples: int | None = 2048,
    seed: int = 0,
    progress: bool = True,
) -> Leading:
    """Measure the leading directions at the model's present weights.

    Args:
        model: Returns ``logits``: [rows, classes], or [rows, tokens, vocabulary] of a causal model.
        batches: Keyword arguments of the model with ``labels``, rows first, in random order.
        parameters: Key -> parameter, all of them weights or biases of linear layers, as LoRA's are.
        num_examples: N, the examples that the adapter was trained on; the scale of F.
        directions: Most eigenvectors to keep. They take ``directions`` times the memory of the adapter, and three times
            that while they are measured.
        labels: Where the labels of the gradients come from.
        max_examples: Stop after so many rows; None for all.
        seed: Seed of drawn labels.
        progress: Show a bar on stderr.

    Returns:
        Eigenvectors, and the eigenvalues of F.

    Raises:
        ConfigError: A parameter is not that of a linear layer, or a number is out of range.
        DataError: No rows with labels, or tokens of a layer that cannot be told apart by row.
        TrainingError: A logit is not finite.
    """
    if directions < 1 or num_examples < 1:
        raise ConfigError(
            f"directions and num_examples must be at least 1, got {directions} and {num_examples}"
        )
    layers = check_linear(model, parameters)
    seen = 0

    def chunks() -> Iterator[dict[str, Tensor]]:
        nonlocal seen
        for rows, batch in pieces(batches, max_examples):
            for found in _row_gradients(model, batch, layers, labels, seed, seen):
                yield {name: _given(found.get(name), rows, own) for name, own in parameters.items()}
            seen += rows
            bar.update(rows)

    with (
        restored(model),
        tqdm(total=max_examples, desc="directions", unit="row", disable=not progress) as bar,
    ):
        found = Leading.of(chunks(), directions)
    return replace(found, values=found.values * (num_examples / seen))


def _given(gradient: Tensor | None, rows: int, parameter: nn.Parameter) -> Tensor:
    """A gradient; zero where the batch did not use the layer."""
    return parameter.new_zeros(rows, *parameter.shape) if gradient is None else gradient


def _row_gradients(
    model: nn.Module,
    batch: Mapping[str, Any],
    layers: Mapping[nn.Linear, Mapping[str, str]],
    labels: LabelKind,
    seed: int,
    first_row: int,
) -> Iterator[dict[str, Tensor]]:
    """Gradients of every row's loss, ``(rows, *parameter)``, times the root of its weight; one set per label."""
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())
    found: dict[str, Tensor] = {}
    receivers: dict[nn.Module, Any] = {
        layer: partial(_receive, found, roles, rows) for layer, roles in layers.items()
    }
    with torch.enable_grad(), differentiable(model, ()), watched(receivers):
        places = read_places(model, batch)
        passes = list(label_passes(places, labels, seed=seed, first_row=first_row))
        for number, (losses, weights) in enumerate(passes):
            found.clear()
            if losses.requires_grad and len(places.targets):
                losses.sum().backward(retain_graph=number + 1 < len(passes))
                roots = weights.sqrt()
                yield {
                    name: value * roots.view(-1, *[1] * (value.dim() - 1)) for name, value in found.items()
                }


def _receive(
    found: dict[str, Tensor], roles: Mapping[str, str], rows: int, inputs: Tensor, gradient: Tensor
) -> None:
    """Form every row's gradient of one layer from its inputs and output gradients; an extra use adds."""
    if rows != 1 and inputs.shape[0] != rows:
        raise DataError(
            "tokens of a layer cannot be told apart by row (packed or routed); use batches of one row"
        )
    x = inputs.float().reshape(rows, -1, inputs.shape[-1])
    d = gradient.float().reshape(rows, -1, gradient.shape[-1])
    parts = {"weight": d.mT @ x, "bias": d.sum(1)}
    for role, name in roles.items():
        found[name] = found[name] + parts[role] if name in found else parts[role]
