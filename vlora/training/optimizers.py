"""The ``optimizer:`` block: IVON or AdamW over the same parameters, with every setting resolved to a number."""

from typing import Any

import torch
from torch import nn

from vlora.ivon.defaults import auto_settings, default_lr, median_width, short_run_defaults
from vlora.ivon.optimizer import IVON
from vlora.ivon.settings import IvonSettings
from vlora.training.config import OptimizerConfig

__all__ = ["build_optimizer"]

_PRICE = (
    "lr", "ess", "init_std", "hess_init", "max_std_ratio", "max_step", "beta1", "beta2", "weight_decay", "clip_radius",
)  # fmt: skip
_AUTO = (
    "lr", "ess", "init_std", "hess_init", "max_std", "max_std_ratio", "noise_cost", "beta1", "beta2", "weight_decay",
    "clip_radius", "max_grad_norm",
)  # fmt: skip
_PASSED_ON = (
    "state_bits", "min_8bit_size", "stochastic_rounding", "prior", "prior_update_every", "prior_pull",
)  # fmt: skip


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    *,
    num_examples: int,
    num_steps: int,
    grad_batch_size: int,
    seed: int,
    max_grad_norm: float | None = None,
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """Optimizer over all trainable parameters in one group.

    Args:
        config: Settings; None values are derived.
        model: Model whose trainable parameters are optimised.
        num_examples: N, rows of the training set.
        num_steps: T, optimizer steps of the run.
        grad_batch_size: Examples averaged in one final gradient (batch size x accumulation x processes).
        seed: Seed of IVON's noise.
        max_grad_norm: For IVON by squared gradients where ``config`` has none.

    Returns:
        The optimizer, and its settings as plain numbers for the log.

    Raises:
        ConfigError: A setting is out of range or contradicts another.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        adamw = _adamw_settings(config, default_lr(median_width(parameters), num_steps))
        return torch.optim.AdamW(parameters, **adamw), {"name": "adamw", **adamw}
    if config.hess_approx == "price":
        settings = short_run_defaults(num_examples, num_steps, **_given(config, _PRICE))
    else:
        batch = float(grad_batch_size) if config.grad_batch_size is None else config.grad_batch_size
        given = {} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}
        given |= _given(config, _AUTO)
        settings = auto_settings(num_steps, grad_batch_size=batch, width=median_width(parameters), **given)
    kwargs = settings.optimizer_kwargs() | _overrides(config, settings)
    return IVON(parameters, seed=seed, **kwargs), {"name": "ivon", "seed": seed, **kwargs}


def _given(config: OptimizerConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """What the configuration says itself."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _adamw_settings(config: OptimizerConfig, lr: float) -> dict[str, Any]:
    """Keyword arguments of ``torch.optim.AdamW``; ``lr`` where the configuration has none."""
    return {
        "lr": _or(config.lr, lr),
        "betas": (_or(config.beta1, 0.9), _or(config.beta2, 0.999)),
        "eps": _or(config.eps, 1e-8),
        "weight_decay": _or(config.weight_decay, 0.0),
    }


def _overrides(config: OptimizerConfig, settings: IvonSettings) -> dict[str, Any]:
    """Arguments of :class:`vlora.IVON` that only a configuration sets."""
    values: dict[str, Any] = {}
    if config.rescale_lr is not None:
        values["rescale_lr"] = config.rescale_lr
    if config.hess_approx == "price" and config.rescale_lr is False and config.clip_radius is None:
        # keep the largest move of an entry, whichever scale the lr is on
        precision = settings.hess_init + (settings.weight_decay or 0.0)
        values["clip_radius"] = settings.clip_radius * precision
    if config.debias is not None:
        values["debias"] = config.debias
    return values | {name: getattr(config, name) for name in _PASSED_ON}


def _or(value: float | None, default: float) -> float:
    """The value, or the default where there is none."""
    return default if value is None else value
