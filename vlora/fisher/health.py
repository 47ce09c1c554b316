"""Does h order the weights as per-example squared gradients do? The part of a posterior's health that needs a model."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vlora.errors import ConfigError
from vlora.fisher.gradients import squared_gradients
from vlora.fisher.losses import Reduction
from vlora.ivon.shards import is_sharded
from vlora.posterior import Posterior
from vlora.posterior.health import compare_with_reference
from vlora.posterior.keys import adapter_tensors, unwrap
from vlora.posterior.spacing import spacing_health

__all__ = ["reference_health", "with_health"]


def with_health(
    posterior: Posterior,
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    held_out: bool,
    max_examples: int = 64,
    adapter_name: str = "default",
) -> Posterior:
    """A posterior from a loop of one's own with the health that ``vlora train`` stores, for ``save_pretrained``.

    ``Posterior.from_optimizer`` knows how far h has left its start; this adds how h ranks against squared gradients of
    some rows at the mean, under the labels of the data. Weights, gradients and modes of the model stay as they are.

    Args:
        posterior: With h, as from ``Posterior.from_optimizer``.
        model: PEFT model that carries the adapter; wrappers of DDP and ``torch.compile`` are looked through.
        batches: Keyword arguments of the model with ``labels``, on its device, in random order: a few rows are looked
            at, such as ``trainer.get_eval_dataloader()``.
        held_out: Whether the rows were kept out of training; noted with the result.
        max_examples: Rows to look at; each costs a forward and a backward pass. Below 32 their order is mostly chance.
        adapter_name: The adapter in the model.

    Returns:
        The posterior with ``rank_correlation``, ``rank_correlation_within``, ``hess_to_reference``,
        ``reference_examples``, ``reference_held_out`` and the shares of entries below number spacings in
        ``meta.health``.

    Raises:
        ConfigError: The posterior has no h, or the model's parameters are sharded.
        DataError: No rows with labels.
        PosteriorFormatError: The model carries another adapter.
        TrainingError: A loss or a gradient is not finite.
    """
    model = unwrap(model)
    if not posterior.has_hess:
        raise ConfigError(
            "health is about h, and this is a plain PEFT adapter without one; train it with IVON"
        )
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise ConfigError(
            "squared gradients need whole parameters, got DTensors (FSDP2): save the posterior, load it on one process "
            "and measure there"
        )
    with posterior.sampled(model, adapter_name=adapter_name):  # the mean, whatever the model holds
        found = reference_health(
            posterior, model, batches, max_examples=max_examples, held_out=held_out, adapter_name=adapter_name
        )
    health = {**posterior.meta.health, **spacing_health(posterior.mean, posterior.std()), **found}
    return replace(posterior, meta=replace(posterior.meta, health=health))


def reference_health(
    posterior: Posterior,
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    max_examples: int,
    held_out: bool,
    adapter_name: str = "default",
) -> dict[str, Any]:
    """Compare h with the mean squared gradient of a few rows, at the weights that the model holds.

    Args:
        posterior: With h of every stochastic tensor.
        model: PEFT model that carries the adapter.
        batches: Batches with labels, in random order.
        max_examples: Rows to look at.
        held_out: Whether the rows were kept out of training; only noted.
        adapter_name: The adapter in the model.

    Returns:
        :func:`vlora.posterior.health.compare_with_reference`, ``reference_examples`` and ``reference_held_out``.
    """
    reduction: Reduction = "token_mean" if posterior.meta.loss_reduction == "token_mean" else "mean"
    found = squared_gradients(
        model,
        batches,
        parameters=adapter_tensors(model, posterior.hess, adapter_name),  # pyright: ignore[reportArgumentType]
        reduction=reduction,
        max_examples=max_examples,
        progress=False,
    )
    return {
        **compare_with_reference(posterior.hess, found.values),
        "reference_examples": found.num_examples,
        "reference_held_out": held_out,
    }
