"""The ``optimizer:`` block: IVON or AdamW over the same parameters, with every setting resolved to a number."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vlora.ivon.defaults import probed_defaults, short_run_defaults
from vlora.ivon.optimizer import IVON
from vlora.training.config import OptimizerConfig

__all__ = ["build_optimizer"]

_DERIVED = (
    "lr", "ess", "init_std", "hess_init", "max_std_ratio", "max_step", "beta1", "beta2", "weight_decay", "clip_radius",
)  # fmt: skip
_ADAMW_LR = 1e-3
INIT_STD = 0.02


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    *,
    num_examples: int,
    num_steps: int,
    grad_batch_size: int,
    seed: int,
    probe: Callable[[float], float],
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    """Optimizer over all trainable parameters in one group.

    Args:
        config: Settings; None values are derived.
        model: Model whose trainable parameters are optimised.
        num_examples: N, rows of the training set.
        num_steps: T, optimizer steps of the run.
        grad_batch_size: Examples averaged in one final gradient (batch size x accumulation x processes).
        seed: Seed of IVON's noise.
        probe: Measures the mean squared per-example gradient under noise of a given standard deviation; called
            only where a setting is derived from it.

    Returns:
        The optimizer, and its settings as plain numbers for the log.

    Raises:
        ConfigError: A setting is out of range or contradicts another.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "adamw":
        adamw = _adamw_settings(config)
        return torch.optim.AdamW(parameters, **adamw), {"name": "adamw", **adamw}
    ivon = _ivon_settings(config, num_examples, num_steps, grad_batch_size, probe)
    return IVON(parameters, seed=seed, **ivon), {"name": "ivon", "seed": seed, **ivon}


def _adamw_settings(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of ``torch.optim.AdamW``."""
    return {
        "lr": _ADAMW_LR if config.lr is None else config.lr,
        "betas": (_or(config.beta1, 0.9), _or(config.beta2, 0.999)),
        "eps": _or(config.eps, 1e-8),
        "weight_decay": _or(config.weight_decay, 0.0),
    }


def _ivon_settings(
    config: OptimizerConfig,
    num_examples: int,
    num_steps: int,
    grad_batch_size: int,
    probe: Callable[[float], float],
) -> dict[str, Any]:
    """Keyword arguments of :class:`vlora.IVON`: what is given, and for the rest the short-run rules."""
    given = {name: getattr(config, name) for name in _DERIVED if getattr(config, name) is not None}
    batch = _or(config.grad_batch_size, float(grad_batch_size))
    if config.hess_approx == "price":
        derived = short_run_defaults(num_examples, num_steps, **given)
    else:
        moment = probe(_or(config.init_std, INIT_STD))
        derived = probed_defaults(num_steps, second_moment=moment, grad_batch_size=batch, **given)
    settings = derived.optimizer_kwargs()
    if config.rescale_lr is False:
        settings["rescale_lr"] = False
        if config.clip_radius is None:  # keep the largest move of an entry, whichever scale the lr is on
            settings["clip_radius"] = derived.max_step / derived.lr
    if config.debias is not None:
        settings["debias"] = config.debias
    if config.prior != "fixed":
        settings |= {"prior": config.prior, "prior_update_every": config.prior_update_every}
    if not config.prior_pull:
        settings["prior_pull"] = False
    return settings


def _or(value: float | None, default: float) -> float:
    """The value, or the default where there is none."""
    return default if value is None else value
