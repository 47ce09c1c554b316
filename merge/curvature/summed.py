"""Sums of whole Grams, some rows at a time, so that a part of the sum stays in a core's cache while Grams are added.

A Gram of 4096 inputs takes 128 MiB in double precision, and reading it costs more than adding it. Entries are those of
``w_0 G_0 + w_1 G_1 + ...`` added in this order, to the last bit, however many rows a part has.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SummedMetric", "weighted_sum"]

_ENTRIES = 2**17
"""Of a part that is summed into place."""
_ROWS = 128
"""Of a part that is summed to be multiplied with."""


def weighted_sum(
    grams: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype | None = None
) -> Tensor:
    """sum_t w_t G_t, in the Grams' precision if no other is asked for.

    Args:
        grams: G_t, shape ``(n, n)`` each.
        weights: w_t; what has weight 0 is not read, except for the first.
        dtype: Of the sum.
    """
    first = grams[0]
    total = torch.empty(first.shape, dtype=dtype or first.dtype, device=first.device)
    step = max(1, _ENTRIES // max(1, first.shape[1]))
    for start in range(0, len(total), step):
        _add_rows(grams, weights, slice(start, start + step), total[start : start + step])
    return total


class SummedMetric:
    """The matrix tau I + sum_t w_t G_t for a product or two, for which it is never written out.

    Args:
        grams: G_t, symmetric, shape ``(n, n)`` each.
        weights: w_t >= 0.
        tau: > 0.
    """

    def __init__(self, grams: Sequence[Tensor], weights: Sequence[float], tau: float) -> None:
        self.grams, self.weights, self.tau = grams, weights, tau

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X M for X of shape ``(r, n)``."""
        found = self.tau * rows
        part = rows.new_empty(_ROWS, rows.shape[1])
        for start in range(0, rows.shape[1], _ROWS):
            columns = found[:, start : start + _ROWS]
            some = part[: columns.shape[1]]
            _add_rows(self.grams, self.weights, slice(start, start + _ROWS), some)
            columns += rows @ some.mT
        return found


def _add_rows(grams: Sequence[Tensor], weights: Sequence[float], rows: slice, out: Tensor) -> None:
    out.copy_(grams[0][rows]).mul_(weights[0])
    for gram, weight in zip(grams[1:], weights[1:], strict=True):
        if weight:
            out.add_(gram[rows], alpha=weight)
