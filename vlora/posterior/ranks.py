"""Spearman's rank correlation, exact with ties."""

import torch
from torch import Tensor

__all__ = ["spearman"]


def spearman(left: Tensor, right: Tensor) -> float | None:
    """Correlation of the ranks of two tensors of one size; equal values share the mean of their ranks.

    Args:
        left: Any shape.
        right: As many entries.

    Returns:
        From -1 to 1 (1: the same order), or None where one of them is constant or there are fewer than two entries.
    """
    first, second = _centred_ranks(left), _centred_ranks(right)
    scale = (first @ first).sqrt() * (second @ second).sqrt()
    return (first @ second / scale).clamp(-1, 1).item() if scale > 0 else None


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks minus their mean, float64 [n]."""
    ordered, order = values.detach().flatten().cpu().sort()
    _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = (last - (sizes.double() - 1) / 2)[group]
    return ranks - (len(order) + 1) / 2
