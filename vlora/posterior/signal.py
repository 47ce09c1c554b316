r"""Signal-to-noise ratios of a LoRA posterior: of single entries of A and B, and of rank components of B A.

An entry has ``|m| / std``. Component k of a module is the rank-one update ``dW_k = s b a^T`` with ``b = B[:, k]`` and
``a = A[k, :]``; for independent entries its moments are closed forms,

    E[dW_k]   = s b a^T
    Var[dW_k] = s^2 (b_i^2 va_j + vb_i a_j^2 + vb_i va_j)                  (product of independent variables)
    snr_k     = ||E[dW_k]||_F / sqrt(sum_ij Var[dW_k]_ij)
              = sqrt( |b|^2 |a|^2 / (|b|^2 Va + Vb |a|^2 + Vb Va) ),       Va = sum_j va_j,  Vb = sum_i vb_i

so the scaling s drops out. Paper -> code: m -> mean, v -> variance.

Gauge. ``(b, a) -> (b / c, c a)`` leaves dW as it is. Evidence of the data moves along: h of A is divided by c^2 and h
of B multiplied by it, so with ``weight_decay = 0`` all these ratios are invariant. The prior does not move along, and
``gauge="balanced"`` takes it where ``|a| = |b|``: the prior precision of A's row k is multiplied by ``|b| / |a|`` and
that of B's column k by ``|a| / |b|``. The ratios are then invariant for any prior. ``gauge="stored"`` takes it where
the factors stand, which is the posterior that draws are made of (arXiv:2506.14280 prunes by this one). Neither is
invariant under a rotation of the rank axis: rotations turn a diagonal posterior into one that is not diagonal, so
components are taken in the basis that training found, and nothing here rotates them.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.posterior.lora_layout import LoraKeys
from vlora.posterior.posterior import Posterior

__all__ = ["Gauge", "component_snr", "entry_snr", "factor_variances"]

Gauge = Literal["balanced", "stored"]

_TINY = 1e-100  # keeps a precision of exactly 0 (no evidence, no prior) from making 0 * infinity


def factor_variances(
    posterior: Posterior, keys: LoraKeys, gauge: Gauge = "balanced"
) -> tuple[Tensor, Tensor]:
    """Variances of both factors of one module, in the coordinates they are stored in.

    Args:
        posterior: The posterior; a factor without h is deterministic.
        keys: The module.
        gauge: Where the prior acts, see the module's text. ``balanced`` counts a negative h as no evidence.

    Returns:
        Variances of A ``(r, n)`` and of B ``(m, r)``, float64.

    Raises:
        ConfigError: There is no such gauge.
    """
    if gauge not in get_args(Gauge):
        raise ConfigError(f"gauge must be one of {', '.join(get_args(Gauge))}, got {gauge!r}")
    a, b = (_matrix(posterior.mean[key]) for key in (keys.a, keys.b))
    squared = torch.ones(len(a), dtype=torch.float64)
    if gauge == "balanced":
        norm_a, norm_b = a.norm(dim=1), b.norm(dim=0)
        both = (norm_a > 0) & (norm_b > 0)  # an empty component has no balanced gauge, and no signal
        squared = torch.where(both, norm_b / norm_a.where(both, 1.0), 1.0)
    return (
        _variance(posterior, keys.a, squared[:, None], gauge),
        _variance(posterior, keys.b, 1 / squared[None, :], gauge),
    )


def entry_snr(posterior: Posterior, keys: LoraKeys, gauge: Gauge = "balanced") -> dict[str, Tensor]:
    """``|m| / std`` of every entry of a module's stochastic factors, float64; higher is more certain to be non-zero."""
    variances = dict(zip((keys.a, keys.b), factor_variances(posterior, keys, gauge), strict=True))
    means = {key: _matrix(posterior.mean[key]) for key in variances if key in posterior.hess}
    return {key: torch.where(m == 0, 0.0, m.abs() * variances[key].rsqrt()) for key, m in means.items()}


def component_snr(posterior: Posterior, keys: LoraKeys, gauge: Gauge = "balanced") -> Tensor:
    """Signal-to-noise ratio of every rank component of a module, float64 ``(r,)``; infinite without any variance.

    Higher is better: at 1 the component's update is as large as its uncertainty.
    """
    variance_a, variance_b = factor_variances(posterior, keys, gauge)
    energy_a = _matrix(posterior.mean[keys.a]).square().sum(1)
    energy_b = _matrix(posterior.mean[keys.b]).square().sum(0)
    noise_a, noise_b = variance_a.sum(1), variance_b.sum(0)
    signal = energy_b * energy_a
    noise = energy_b * noise_a + noise_b * energy_a + noise_b * noise_a
    return torch.where(signal > 0, (signal / noise).sqrt(), 0.0)


def _variance(posterior: Posterior, key: str, prior_factor: Tensor, gauge: Gauge) -> Tensor:
    """1 / (ess (h + factor * weight_decay)); zero where there is no h, and for entries that were pruned."""
    if key not in posterior.hess:
        return torch.zeros_like(_matrix(posterior.mean[key]))
    hess, ess = _matrix(posterior.hess[key]), posterior.meta.of("ess", key)
    prior = prior_factor * posterior.meta.of("weight_decay", key)
    evidence = hess.clamp_min(0) if gauge == "balanced" else hess
    variance = 1 / (ess * (evidence + prior)).clamp_min(_TINY)
    if key in posterior.meta.fixed_zeros:
        variance = variance.masked_fill(_matrix(posterior.mean[key]) == 0, 0.0)
    return variance


def _matrix(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
