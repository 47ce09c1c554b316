"""Hyper-parameters of one IVON parameter group: defaults, checks, and the prior given as a precision."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlora.errors import ConfigError
from vlora.ivon.clipping import check_clipping, clip_settings
from vlora.ivon.noise import prepare_noise
from vlora.ivon.prior import PRIORS, split_group
from vlora.ivon.ranges import check_range
from vlora.ivon.step import effective_lr

__all__ = ["prepare_group", "prepare_groups", "step_settings", "warn_if_overridden"]

_CHECKED = (
    "lr", "ess", "hess_init", "beta1", "beta2", "weight_decay", "clip_radius", "mc_samples", "min_8bit_size",
    "prior_update_every",
)  # fmt: skip


def prepare_groups(group: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """The group, checked and completed, as the groups to add: one per tensor where the prior is learned.

    Raises:
        ConfigError: If a value is out of range or two of them contradict each other.
    """
    prepare_group(group, defaults)
    learned = group.get("prior", defaults["prior"]) == "empirical_bayes"
    groups = split_group(group) if learned else [group]
    for part in groups:
        part.setdefault("sampled", [])
    return groups


def prepare_group(group: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Fill in ``weight_decay`` from ``prior_precision`` and refuse impossible values.

    A ``prior_precision`` (the precision of the prior N(0, 1/prior_precision), in 1/parameter^2) wins over any
    ``weight_decay``, because transformers' Trainer writes its own ``weight_decay`` into every group it builds.

    Args:
        group: Parameter group, completed in place.
        defaults: Values for the keys that the group leaves out.

    Raises:
        ConfigError: If a value is out of range or two of them contradict each other.
    """
    values = {**defaults, **group}
    prepare_noise(group, values)
    values |= {key: group[key] for key in ("ess", "weight_decay") if key in group}
    prior_precision = values.get("prior_precision")
    if prior_precision is not None:
        check_range("ess", values["ess"])
        check_range("prior_precision", prior_precision)
        group["weight_decay"] = values["weight_decay"] = prior_precision / values["ess"]
    for key in _CHECKED:
        check_range(key, values[key])
    if not values["hess_init"] + values["weight_decay"] > 0:
        raise ConfigError(
            "hess_init + weight_decay must be > 0, got 0: the first draw would be infinitely wide"
        )
    if values["hess_approx"] not in ("price", "gradsq"):
        raise ConfigError(f"hess_approx must be 'price' or 'gradsq', got {values['hess_approx']!r}")
    if values["compiled"] and not values["foreach"]:
        raise ConfigError(
            "compiled=True and foreach=False exclude each other: choose the compiled or the reference path"
        )
    if values["state_bits"] not in (8, 32):
        raise ConfigError(f"IVON's state_bits must be 8 or 32, got {values['state_bits']}")
    if values["noise"] not in ("shared", "per_rank"):
        raise ConfigError(f"IVON's noise must be 'shared' or 'per_rank', got {values['noise']!r}")
    _check_grad_batch_size(values)
    _check_mean_step(values)
    check_clipping(values)
    _check_prior(values)
    group.setdefault("prior_start", values["weight_decay"])


def _check_grad_batch_size(values: dict[str, Any]) -> None:
    size = values["grad_batch_size"]
    if size is not None and values["hess_approx"] != "gradsq":
        raise ConfigError(
            "grad_batch_size is the scale of hess_approx='gradsq'; it has no meaning for 'price'"
        )
    if size is not None:
        check_range("grad_batch_size", size)


def _check_mean_step(values: dict[str, Any]) -> None:
    if values["mean_step"] not in ("newton", "adam"):
        raise ConfigError(f"mean_step must be 'newton' or 'adam', got {values['mean_step']!r}")
    squares = values["hess_approx"] == "gradsq" and values["grad_batch_size"] is not None
    for key in ("mean_step", "noise_cost"):
        if values[key] not in ("newton", None) and not squares:
            raise ConfigError(
                f"{key}={values[key]} needs an h that is never negative: give hess_approx='gradsq' and grad_batch_size"
            )


def _check_prior(values: dict[str, Any]) -> None:
    if values["prior"] not in PRIORS:
        raise ConfigError(f"IVON's prior must be one of {', '.join(PRIORS)}, got {values['prior']!r}")
    if values["prior"] == "empirical_bayes" and not values["weight_decay"] > 0:
        raise ConfigError(
            "prior='empirical_bayes' starts from a weight_decay above 0, got 0; Trainer's own weight_decay may have "
            "replaced yours: give prior_precision = ess * weight_decay, which wins"
        )


def warn_if_overridden(weight_decay: float, groups: Sequence[dict[str, Any]]) -> None:
    """Say so when an explicit ``weight_decay`` is lost because every non-empty group brings another one."""
    own = [group["weight_decay"] for group in groups if group["params"]]
    if own and weight_decay not in own:
        warnings.warn(
            f"weight_decay={weight_decay} has no effect: every parameter group brings its own ({own[0]}; Trainer "
            "writes TrainingArguments.weight_decay there). Set it there, or give IVON prior_precision = ess * "
            "weight_decay, which wins.",
            stacklevel=3,
        )


def _rescaled(group: dict[str, Any]) -> bool:
    """Adam's step has its own scale: its learning rate is never rescaled."""
    return group["rescale_lr"] and group["mean_step"] == "newton"


def step_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``ivon_step`` and ``ivon_step_`` that are shared by a group."""
    lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
    names = (
        "ess",
        "weight_decay",
        "beta1",
        "beta2",
        "clip_radius",
        "debias",
        "hess_approx",
        "grad_batch_size",
        "mean_step",
        "prior_pull",
    )
    settings = {name: group[name] for name in names} | clip_settings(group)
    # a prior that is learned moves the weight decay, and must not move the learning rate with it
    learned = group["prior"] == "empirical_bayes"
    start = group.get("prior_start", group["weight_decay"]) if learned else group["weight_decay"]
    settings["lr"] = effective_lr(
        lr, hess_init=group["hess_init"], weight_decay=start, rescale_lr=_rescaled(group)
    )
    return settings
