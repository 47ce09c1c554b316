r"""Covariances of the weights in the linearised model, by kind, and what each needs of the posterior's folder.

*independent*: h alone. *kronecker*: ``curvature.safetensors`` gives the directions within every LoRA factor
(:mod:`vlora.posterior.kronecker`). *leading*: ``directions.safetensors``, the leading eigenvectors of the Fisher matrix
over all tensors at once, which needs no h (:mod:`vlora.posterior.leading`). With Jacobian J of the outputs their
covariance is :math:`J \Sigma J^\top`; with temperature T = N / ess and prior precision :math:`\alpha` at temperature 1

.. math:: \Sigma^{-1} = (N h + \alpha) / T

for the first, and for the second along Kronecker factors with the scale of h. For leading directions :math:`\alpha` is
the precision of what they leave out, and their own follow in proportion
(:meth:`vlora.posterior.leading.Leading.resting`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.posterior.decisions import Kind
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.kronecker import covariances, has_factors, output_covariance, under_priors
from vlora.posterior.leading import Leading
from vlora.posterior.posterior import Posterior

__all__ = ["available_kinds", "missing", "output_covariances", "source_identity"]


def available_kinds(posterior: Posterior) -> list[Kind]:
    """Kinds that the posterior has what it takes for."""
    kinds: tuple[Kind, ...] = ("independent", "kronecker", "leading")
    return [kind for kind in kinds if missing(posterior, kind) is None]


def missing(posterior: Posterior, kind: Kind) -> str | None:
    """What the posterior lacks for a kind, with the cure; None if nothing."""
    if kind == "kronecker" and not has_factors(posterior):
        return (
            "it has no Kronecker factors (curvature.safetensors); train with curvature: true, or collect them"
        )
    if kind == "leading" and posterior.directions is None:
        return (
            "it has no leading directions (directions.safetensors); measure them with vlora posterior or vlora train "
            "and directions: 256"
        )
    return None


def source_identity(posterior: Posterior, kind: Kind) -> dict[str, str]:
    """Hash of what a kind takes besides h, under the name it has in ``calibration.json``; empty for h alone."""
    if kind == "kronecker":
        return {"curvature_sha256": tensors_sha256(posterior.curvature or {})}
    if kind == "leading" and posterior.directions is not None:
        shapes = {key: h.shape for key, h in posterior.hess.items()}
        return {"directions_sha256": tensors_sha256(posterior.directions.tensors(shapes))}
    return {}


def output_covariances(
    posteriors: Sequence[Posterior],
    kind: Kind,
    *,
    priors: Sequence[float] = (),
    device: torch.device | str = "cpu",
) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """Prepare the covariances of outputs under several posteriors of one adapter; one Jacobian serves all of them.

    Args:
        posteriors: They differ in temperature and prior only.
        kind: Covariance of the weights.
        priors: The first posterior under each of these prior precisions, in place of ``posteriors``.
        device: Where the gradients are.

    Returns:
        A function from gradients (PEFT key -> ``(N, K, *tensor)``) to covariances, each float64 ``(N, K, K)``.

    Raises:
        ConfigError: The posterior lacks what the kind needs.
    """
    if kind == "leading":
        return _joint([posteriors[0].with_prior(one) for one in priors] or posteriors, device)
    kronecker = kind == "kronecker"
    if priors:
        spreads = under_priors(posteriors[0], priors, kronecker=kronecker, device=device)
    else:
        spreads = [covariances(one, kronecker=kronecker, device=device) for one in posteriors]
    return partial(output_covariance, spreads=spreads)


def _joint(
    posteriors: Sequence[Posterior], device: torch.device | str
) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """Covariances of leading directions, at every posterior's prior and temperature."""
    temperatures: list[float] = []
    spectra: list[Leading] = []
    for posterior in posteriors:
        temperature, leading = posterior.temperature, posterior.directions
        if leading is None:
            raise ConfigError(f"linearised: leading cannot be had: {missing(posterior, 'leading')}")
        if temperature is None:
            raise ConfigError(
                "linearised: leading cannot be had: ess differs between tensors; set temperature: 1"
            )
        temperatures.append(temperature)
        spectra.append(leading)
    shared = spectra[0].to(device)

    def covariances_of(gradients: Mapping[str, Tensor]) -> list[Tensor]:
        at_one = shared.covariances(gradients, spectra)
        return [temperature * one for temperature, one in zip(temperatures, at_one, strict=True)]

    return covariances_of
