r"""Numbered draws of a posterior: draw k is the same on every machine, in any order, on any device.

NumPy's Philox counter generator is keyed by a hash of (seed, draw, tensor name), so no draw depends on which
others were made before it, on the device, or on global random state. From this noise :math:`\epsilon`, of a posterior
with mean m, either

*independent* entries, :math:`\theta = m + \epsilon / \sqrt{\mathrm{ess}\,(h + \delta)}`, or

*leading* directions, :math:`\theta = m + \sqrt T\, \Sigma^{1/2} \epsilon` with the covariance :math:`\Sigma` over all
tensors at once of :mod:`vlora.posterior.leading` at temperature T = N / ess. No h enters.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlora.errors import ConfigError

if TYPE_CHECKING:
    from vlora.posterior.posterior import Posterior

__all__ = [
    "DrawCovariance",
    "check_draws",
    "covariance_of",
    "deviations",
    "known_covariance",
    "standard_normal",
]

DrawCovariance = Literal["independent", "leading"]
"""Covariance of the weights that draws are made with: h alone, or leading directions of the Fisher matrix."""


def known_covariance(asked: str | None) -> DrawCovariance:
    """The covariance of draws that is asked for, ``independent`` where none is.

    Raises:
        ConfigError: There is no such one.
    """
    if asked not in (None, "independent", "leading"):
        raise ConfigError(f"covariance must be independent or leading, got {asked!r}")
    return asked or "independent"


def covariance_of(section: Mapping[str, Any]) -> DrawCovariance:
    """The covariance that a stored section names; independent entries where it names none, as older ones do.

    Raises:
        ValueError: It names something else.
    """
    found = section.get("covariance", "independent")
    if found not in ("independent", "leading"):
        raise ValueError(f"covariance must be one of independent, leading, got {found!r}")
    return found


def standard_normal(shape: torch.Size, *, seed: int, draw: int, name: str) -> Tensor:
    """Standard-normal numbers of one tensor in one posterior draw.

    Args:
        shape: Shape of the tensor.
        seed: Seed of the posterior.
        draw: Number of the draw, 0, 1, 2, …
        name: Key of the tensor.

    Returns:
        float32 CPU tensor of ``shape``.
    """
    digest = hashlib.sha256(f"vlora-draw/1/{seed}/{draw}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32).reshape(tuple(shape)))


def deviations(posterior: "Posterior", k: int, *, antithetic: bool = False) -> dict[str, Tensor]:
    """What draw k adds to the mean, by the posterior's ``covariance``.

    Args:
        posterior: Where to draw from.
        k: Number of the draw, from 0.
        antithetic: Draws 2j and 2j + 1 use the same noise with opposite signs.

    Returns:
        PEFT key -> float32, of every stochastic tensor; 0 for pruned entries.

    Raises:
        ValueError: ``k`` is negative.
        ConfigError: The covariance cannot be had.
    """
    if k < 0:
        raise ValueError(f"draw numbers start at 0, got {k}")
    number, sign = (k // 2, 1 - 2 * (k % 2)) if antithetic else (k, 1)
    noise = {
        key: sign * standard_normal(hess.shape, seed=posterior.meta.seed, draw=number, name=key)
        for key, hess in posterior.hess.items()
    }
    if posterior.covariance == "independent":
        return {key: sd * noise[key].to(sd.device) for key, sd in posterior.std().items()}
    return _leading(posterior, noise)


def _leading(posterior: "Posterior", noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Noise with the covariance of the leading directions, at the posterior's temperature."""
    check_draws(posterior)
    leading, temperature = posterior.directions, posterior.temperature
    assert leading is not None and temperature is not None  # no obstacle
    found = leading.correlated(noise)
    drawn = {key: temperature**0.5 * value.to(posterior.mean[key].device) for key, value in found.items()}
    for key in drawn.keys() & set(posterior.meta.fixed_zeros):
        drawn[key] = drawn[key].masked_fill(posterior.mean[key] == 0, 0.0)
    return drawn


def check_draws(posterior: "Posterior", name: str | None = None) -> None:
    """Refuse a posterior that lacks what draws with its ``covariance`` take, before anything is scored.

    Args:
        posterior: Where to draw from; a plain adapter passes, it has no draws.
        name: What to call it.

    Raises:
        ConfigError: It lacks something; the message says what helps.
    """
    if posterior.covariance == "leading" and posterior.hess and (reason := _obstacle(posterior)) is not None:
        who = "" if name is None else f" for {name}"
        raise ConfigError(f"draws with covariance: leading cannot be had{who}: {reason}")


def _obstacle(posterior: "Posterior") -> str | None:
    """Why there are no draws with the covariance of leading directions, with the cure; None if there are."""
    leading = posterior.directions
    if leading is None:
        return (
            "the posterior has no leading directions (directions.safetensors); measure them with vlora posterior or "
            "vlora train and directions: 256"
        )
    if set(leading.keys) != set(posterior.hess):
        return "the leading directions are those of other tensors; measure them again at the posterior's mean"
    if posterior.temperature is None:
        return "ess differs between tensors; set temperature: 1"
    if posterior.meta.num_examples < 1:
        return "the posterior records no num_examples, so how wide it is is not known; measure it again"
    return None
