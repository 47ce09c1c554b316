"""IVON that sets itself up: a look at the gradients of a few real batches, then ``auto_settings``."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from vlora.errors import TrainingError
from vlora.ivon.defaults import IvonSettings, auto_settings

__all__ = ["PROBE_STD", "auto_ivon", "probe_moments", "settings_from_moments"]

logger = logging.getLogger(__name__)

PROBE_STD = 0.01
"""Standard deviation of the noise under which gradients are looked at, in parameter units."""


def auto_ivon(
    cls: Callable[..., Any],
    params: Any,
    loss: Callable[[], Tensor],
    *,
    num_steps: int,
    grad_batch_size: float,
    seed: int,
    num_batches: int,
    given: Mapping[str, Any],
) -> Any:
    """Body of ``IVON.auto``; ``cls`` is IVON."""
    groups = list(params)
    flat = [param for group in groups for param in (group["params"] if isinstance(group, dict) else [group])]
    known = set(inspect.signature(auto_settings).parameters)
    moments = probe_moments(
        [param for param in flat if param.requires_grad], loss,
        num_batches=num_batches, batch_size=grad_batch_size, seed=seed,
    )  # fmt: skip
    settings = settings_from_moments(
        moments, num_steps, grad_batch_size, **{key: value for key, value in given.items() if key in known}
    )
    rest = {key: value for key, value in given.items() if key not in known}
    optimizer = cls(groups, seed=seed, **{**settings.optimizer_kwargs(), **rest})
    if "hess_init" not in given:
        optimizer.set_hess_init(moments)
    logger.info(settings.describe())
    return optimizer


def probe_moments(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    *,
    std: float = PROBE_STD,
    num_batches: int = 8,
    batch_size: Callable[[], float] | float = 1.0,
    seed: int = 0,
) -> dict[nn.Parameter, float]:
    """Mean squared gradient of every tensor near the start of training, times the batch size.

        mean over batches and entries of b g^2,    g = gradient of the mean loss of b examples

    For gradients of zero mean, b g^2 has the expectation of one example's squared gradient. Taken at the start plus
    noise: at LoRA's zero B the gradient of A is exactly zero. Weights and gradients are left as they were.

    Args:
        parameters: Trainable parameters.
        loss: Mean loss of a fresh batch of b examples.
        std: Standard deviation of the noise, in parameter units.
        num_batches: Batches to look at.
        batch_size: b, or a function that says it after ``loss`` was called.
        seed: Seed of the noise.

    Returns:
        Parameter -> second moment of its entries, in units of loss^2 / parameter^2; 0 without a gradient.

    Raises:
        TrainingError: A gradient is not finite.
    """
    former = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    totals = torch.zeros(len(parameters), dtype=torch.float64)
    try:
        for _ in range(num_batches):
            with torch.no_grad():
                for parameter, mean in zip(parameters, former, strict=True):
                    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
                    parameter.copy_(mean + std * noise.to(mean.device, mean.dtype))
            moments = _squared_gradients(parameters, loss())
            totals += moments * (batch_size() if callable(batch_size) else batch_size)
    finally:
        with torch.no_grad():
            for parameter, mean in zip(parameters, former, strict=True):
                parameter.copy_(mean)
    if not totals.isfinite().all():
        raise TrainingError(
            "the gradients at the start hold NaN or infinity; check the base weights and the data (nothing was written)"
        )
    return dict(zip(parameters, (totals / num_batches).tolist(), strict=True))


def _squared_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Mean squared entry of the gradient of each parameter. Shape ``(parameters,)``, float64."""
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.stack(
        [
            torch.zeros((), dtype=torch.float64) if grad is None else grad.double().square().mean().cpu()
            for grad in gradients
        ]
    )


def settings_from_moments(
    moments: Mapping[nn.Parameter, float], num_steps: int, grad_batch_size: float, **given: Any
) -> IvonSettings:
    """``auto_settings`` for tensors whose second moments are known; the width is the median of their longest sides."""
    entries = sum(parameter.numel() for parameter in moments)
    mean = math.fsum(parameter.numel() * moment for parameter, moment in moments.items()) / max(entries, 1)
    width = int(median(max(parameter.shape, default=1) for parameter in moments)) if moments else 1
    return auto_settings(num_steps, second_moment=mean, grad_batch_size=grad_batch_size, width=width, **given)
