r"""Smooth functions of a few weights from their values at some points: cubic radial basis functions.

    f(x) = sum_i alpha_i |x - x_i|^3 + beta_0 + beta^T x,      sum_i alpha_i = 0,  sum_i alpha_i x_i = 0

through all values, of all such functions the one of least bending (Powell 1992; Wendland 2005, chapter 8). It is linear
in the values: f(x) = sum_i b_i(x) f(x_i) with cardinal functions b_i that know the points only, so whole vectors are
interpolated by their products with each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cardinals"]


@dataclass(frozen=True)
class Cardinals:
    """The cardinal functions of some points."""

    points: Tensor
    """x_i. Shape ``(p, d)``."""
    inverse: Tensor
    """Of the system for alpha and beta, as far as values enter. Shape ``(p + 1 + d, p)``."""

    @classmethod
    def of(cls, points: Tensor) -> "Cardinals":
        """Solve the system once.

        Args:
            points: At least d + 1 in general position, no two the same. Shape ``(p, d)``.
        """
        linear = _linear(points)
        corner = points.new_zeros(linear.shape[1], linear.shape[1])
        top = torch.cat([torch.cdist(points, points).pow(3), linear], 1)
        system = torch.cat([top, torch.cat([linear.mT, corner], 1)])
        return cls(points, torch.linalg.inv(system)[:, : len(points)])

    def at(self, places: Tensor) -> Tensor:
        """b_i(x).

        Args:
            places: Shape ``(k, d)``.

        Returns:
            Shape ``(k, p)``; rows sum to 1.
        """
        return torch.cat([torch.cdist(places, self.points).pow(3), _linear(places)], 1) @ self.inverse


def _linear(places: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(places[:, :1]), places], 1)
