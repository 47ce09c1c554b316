"""SLERP and Fisher-weighted averaging on tiles of whole checkpoints.

Sums over a tensor are sums per tile in float64, added in the order of the tiles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.rules import NotFinite, Rule, differences
from vlora.merge.methods.slerp import slerp_coefficients

if TYPE_CHECKING:
    from vlora.merge.checkpoints.headers import TensorEntry
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["FLOOR", "Fisher", "Slerp"]

FLOOR = 1e-6
"""Share of the mean Fisher that every entry has at least, as in :mod:`vlora.merge.methods.fisher`."""


@dataclass
class Slerp(Rule):
    """Along the arc between two tensors, or between their differences to the base if there is one."""

    weights: Sequence[float]
    from_base: bool
    passes: int = 2
    tiles: int = 2

    def prepare(self, stream: "TensorStream") -> tuple[float, float]:
        """Coefficients of the two tensors."""
        position = self.weights[1] / sum(self.weights)
        sums = [self._products(values) for _, values in stream.passes()]
        dot, first, second = (math.fsum(column) for column in zip(*sums, strict=True))
        product = math.sqrt(first * second)
        return slerp_coefficients(dot / product if product > 0 else 1.0, position)

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The weighted sum, on the base if there is one."""
        first, second = self._ends(values)
        total = first.mul_(known[0]).add_(second, alpha=known[1])
        return total.add_(values[0]) if self.from_base else total

    def _ends(self, values: list[Tensor]) -> list[Tensor]:
        return differences(values) if self.from_base else values

    def _products(self, values: list[Tensor]) -> tuple[float, float, float]:
        first, second = (end.double() for end in self._ends(values))
        return torch.dot(first, second).item(), first.square().sum().item(), second.square().sum().item()


@dataclass
class Fisher(Rule):
    """sum_t w_t F_t W_t / sum_t w_t F_t; inputs are all W_t, then all F_t.

    A Fisher of zeros (a tensor that was not trained) counts as a flat one of mean 1, or with ``normalise=False``, where
    sizes are compared, not at all; if all are zero, the result is the plain weighted mean.
    """

    weights: Sequence[float]
    normalise: bool = True
    passes: int = 2
    tiles: int = 2

    def prepare(self, stream: "TensorStream") -> list[float]:
        """Mean of every Fisher.

        Raises:
            NotFinite: One holds NaN or infinity.
            CheckpointError: One holds negative entries.
        """
        count = len(self.weights)
        sums = [
            [_total(f, entry) for f, entry in zip(values[count:], stream.job.inputs[count:], strict=True)]
            for _, values in stream.passes()
        ]
        return [math.fsum(column) / max(1, stream.tiling.numel) for column in zip(*sums, strict=True)]

    def findings(self, known: Any) -> dict[str, Any]:
        """Numbers of the Fishers that are zero."""
        zero = [index for index, mean in enumerate(known) if mean == 0]
        return {"zero_fisher": zero} if zero else {}

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The average, every Fisher floored and (if asked for) of mean 1."""
        flat = 1.0 if self.normalise or not any(known) else 0.0
        count = len(self.weights)
        total, pulled = torch.zeros_like(values[0]), torch.zeros_like(values[0])
        for weight, tensor, fisher, mean in zip(
            self.weights, values[:count], values[count:], known, strict=True
        ):
            certain = fisher.clamp_min_(FLOOR * mean) if mean > 0 else fisher.fill_(flat)
            share = weight / mean if self.normalise and mean > 0 else weight
            total.add_(certain, alpha=share)
            pulled.add_(certain.mul_(tensor), alpha=share)
        return pulled.div_(total)


def _total(fisher: Tensor, entry: "TensorEntry") -> float:
    """Sum of a tile of a Fisher, which must be finite and not negative."""
    total = fisher.double().sum().item()
    if not math.isfinite(total):
        raise NotFinite(-1)
    if fisher.numel() and fisher.min().item() < 0:
        raise CheckpointError(
            f"{entry.path} holds negative entries in {entry.name}, and a Fisher information has none; save the mean of "
            "squared gradients"
        )
    return total
