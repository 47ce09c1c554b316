"""A short look at the gradients before training, from which IVON's settings take their scale."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vlora.errors import TrainingError

__all__ = ["probe_second_moment"]


def probe_second_moment(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    init_std: float = 0.02,
    seed: int = 0,
    num_batches: int = 8,
) -> float:
    """Mean over trainable entries of the squared per-example gradient, near the start of training.

        mean over batches and entries of b g^2,    g = gradient of the mean loss of b examples

    For gradients of zero mean, b g^2 has the expectation of one example's squared gradient. Taken at the start plus
    noise of ``init_std``: at LoRA's zero B the gradient of A is exactly zero. Weights, gradients and the training
    mode are left as they were.

    Args:
        model: Model that returns a loss, with trainable parameters.
        batches: Batches as the model takes them.
        init_std: Standard deviation of the noise, in parameter units.
        seed: Seed of the noise.
        num_batches: Batches to look at.

    Returns:
        The second moment, in units of loss^2 / parameter^2.

    Raises:
        TrainingError: A gradient is not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    former = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    total, count, was_training = 0.0, 0, model.training
    try:
        for batch in islice(batches, num_batches):
            for parameter, mean in zip(parameters, former, strict=True):
                noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
                parameter.data.copy_(mean + init_std * noise.to(mean.device, mean.dtype))
            total += _batch_moment(model, parameters, batch)
            count += 1
    finally:
        for parameter, mean in zip(parameters, former, strict=True):
            parameter.data.copy_(mean)
        model.train(was_training)
    if not math.isfinite(total):
        raise TrainingError(
            "the gradients at the start hold NaN or infinity; check the base weights and the data (nothing was written)"
        )
    return total / max(count, 1)


def _batch_moment(model: nn.Module, parameters: list[nn.Parameter], batch: Mapping[str, Any]) -> float:
    """Return b times the mean squared gradient of one batch."""
    model.train()
    device = parameters[0].device
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    loss = model(**inputs).loss
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    known = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    entries = sum(parameter.numel() for parameter in parameters)
    return len(inputs["labels"]) * float(torch.stack(known).sum()) / entries if known else 0.0
