"""Does the posterior carry the data's signal, or is it still its prior?"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlora.posterior.meta import PosteriorMeta

__all__ = ["describe_health", "measure_health"]


def measure_health(
    hess: Mapping[str, Tensor], *, steps: int, beta2: float, hess_init: Mapping[str, float]
) -> dict[str, Any]:
    """Two numbers that tell how far h has left its start.

    Args:
        hess: h of every stochastic tensor.
        steps: Optimizer steps taken.
        beta2: Decay of the Hessian average.
        hess_init: Value that the entries of each tensor started from.

    Returns:
        ``effective_memory`` = 1 - beta2^steps, the weight of the data in h (0 to 1, higher is better);
        ``share_moved``, the share of entries outside +-10 % of ``hess_init``; ``share_negative``, the share
        of entries below zero, where the noisy estimate claims negative curvature (lower is better).
    """
    flat = {key: h.detach().float().flatten().cpu() for key, h in hess.items()}
    values = torch.cat(list(flat.values()))
    moved = torch.cat([(h - hess_init[key]).abs() > 0.1 * abs(hess_init[key]) for key, h in flat.items()])
    return {
        "effective_memory": 1.0 - beta2**steps,
        "share_moved": moved.double().mean().item(),
        "share_negative": (values < 0).double().mean().item(),
    }


def describe_health(
    mean: Mapping[str, Tensor], hess: Mapping[str, Tensor], std: Mapping[str, Tensor], meta: PosteriorMeta
) -> dict[str, Any]:
    """Spread of the posterior and a verdict in words, for ``vlora inspect`` and the model card.

    Returns:
        ``std`` and ``hess`` as 5/50/95 % quantiles, ``noise_to_weight`` = median of std / |mean| over
        non-zero means, the numbers of :func:`measure_health` when known, and ``verdict``.
    """
    sd = torch.cat([s.flatten().cpu() for s in std.values()])
    h = torch.cat([value.float().flatten().cpu() for value in hess.values()])
    m = torch.cat([mean[key].float().flatten().cpu() for key in std]).abs()
    ratio = sd[m > 0] / m[m > 0]
    return {
        "std": _quantiles(sd),
        "hess": _quantiles(h),
        "noise_to_weight": ratio.median().item() if ratio.numel() else None,
        **meta.health,
        "verdict": _verdict(meta),
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    ordered = values.sort().values
    last = ordered.numel() - 1
    return {f"{q}%": ordered[round(q / 100 * last)].item() for q in (5, 50, 95)}


def _verdict(meta: PosteriorMeta) -> str:
    moved = meta.health.get("share_moved")
    if moved is None:
        return "not measured: h does not come from one training run"
    if moved < 0.1:
        return "this posterior is still its prior: h has hardly left its start; lower beta2 or train longer"
    if moved < 0.5:
        return "weak: less than half of h has left its start"
    return "h has moved with the data"
