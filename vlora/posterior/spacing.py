"""The posterior's width against the gaps between the numbers that a format can hold.

A draw ``mean + std * noise`` that is stored in a format whose neighbours of ``mean`` lie further away than twice the
standard deviation rounds back to the mean most of the time: the entry is deterministic, whatever the posterior says.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["share_below_spacing", "spacing", "spacing_health"]


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance from ``|values|`` to the next larger number of a floating-point format.

    Args:
        values: Any floating-point tensor.
        dtype: The format, for example ``torch.bfloat16``.

    Returns:
        float64 tensor of the same shape: ``eps * 2^floor(log2 |v|)``, and the smallest step near zero.
    """
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double().abs().clamp_min(limits.tiny))
    return torch.ldexp(torch.full_like(values, limits.eps, dtype=torch.float64), exponent - 1)


def share_below_spacing(
    mean: Mapping[str, Tensor], std: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> float:
    """Share of stochastic entries whose std is below half the spacing at |mean|; lower is better.

    Args:
        mean: PEFT key -> mean, with at least the keys of ``std``.
        std: PEFT key -> standard deviation.
        dtype: Number format; None takes the dtype of each mean.
    """
    lost = sum(
        int((sd.cpu() < spacing(mean[k].cpu(), dtype or mean[k].dtype) / 2).sum()) for k, sd in std.items()
    )
    return lost / max(1, sum(sd.numel() for sd in std.values()))


def spacing_health(mean: Mapping[str, Tensor], std: Mapping[str, Tensor]) -> dict[str, float]:
    """``share_below_spacing`` in the dtype of the adapter, and in bfloat16, to which trainers like to cast."""
    return {
        "share_below_spacing": share_below_spacing(mean, std),
        "share_below_spacing_bfloat16": share_below_spacing(mean, std, torch.bfloat16),
    }
