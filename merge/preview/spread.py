r"""Standard deviations of thousands of predicted losses from the noise at a few weightings.

At a weighting w the variance of task t is g_t(w)^T g_t(w), g_t being the gradient in units of the posteriors' standard
deviations, with the probes of the second term appended (:mod:`vlora.merge.preview.matching_noise`). The vectors are
interpolated, not their lengths, which have a kink where a gradient passes through 0:

    Var_t(w) = a_t(w)^2 b(x)^T M_t b(x),   M_t,ij = g_t(w_i)^T g_t(w_j) / (a_t(w_i) a_t(w_j)),   a_t = l_t + .01 l_t(0)

with b the cardinal functions of :mod:`vlora.merge.preview.interpolation` in x = sign(w) log(1 + \|w\| / .01), as the
curvature of the leading directions makes everything change fastest near 0, and a_t(w) from the predicted losses l_t,
which are known at every weighting and fall as the gradients do. Only the products M_t are kept, added up over the
modules.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.merge.preview.interpolation import Cardinals

__all__ = ["Spread", "noise_weightings"]

_NEAR, _FLOOR = 0.01, 0.01
_EACH, _MORE, _MOST = 4, 8, 32  # weightings: per weight, in any case, at most


def noise_weightings(count: int, low: float, high: float) -> Tensor:
    """Weightings at which the noise is worked out: each alone, none, all, the mean, and some of the box, denser near 0.

    Args:
        count: d, number of weights.
        low: Smallest weight.
        high: Largest weight.

    Returns:
        Shape ``(p, d)``, no two the same.
    """
    ones = torch.ones(1, count, dtype=torch.float64)
    special = torch.cat([torch.eye(count, dtype=torch.float64), 0 * ones, ones, ones / count])
    ends = [torch.tensor(end, dtype=torch.float64) for end in (low, high)]
    first, last = (end.sign() * end.abs().sqrt() for end in ends)
    sobol = torch.quasirandom.SobolEngine(count, scramble=True, seed=0)
    drawn = first + (last - first) * sobol.draw(min(_MOST, _EACH * count + _MORE), dtype=torch.float64)
    return torch.cat([special, drawn.sign() * drawn.square()])


@dataclass(frozen=True)
class Spread:
    """Products of the noise at some weightings, over all modules."""

    cardinals: Cardinals
    products: Tensor
    """M_t. Shape ``(P, p, p)``."""
    floor: Tensor
    """.01 l_t(0). Shape ``(P,)``."""

    @classmethod
    def of(cls, weightings: Tensor, products: Tensor, losses: Tensor, alone: Tensor) -> "Spread":
        """From the products as they are.

        Args:
            weightings: Shape ``(p, d)``.
            products: g_t(w_i)^T g_t(w_j). Shape ``(P, p, p)``.
            losses: l_t at the weightings. Shape ``(p, P)``.
            alone: l_t(0). Shape ``(P,)``.
        """
        floor = (_FLOOR * alone).clamp_min(torch.finfo(alone.dtype).tiny)
        size = (losses + floor).mT
        scaled = products / (size.unsqueeze(-1) * size.unsqueeze(-2))
        return cls(Cardinals.of(_stretched(weightings)), scaled, floor)

    def variance(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Variance of every adapter's loss.

        Args:
            weights: Shape ``(k, d)``.
            losses: l_t there. Shape ``(k, P)``.

        Returns:
            Shape ``(k, P)``.
        """
        parts = self.cardinals.at(_stretched(weights))
        squares = ((parts @ self.products) * parts).sum(-1).mT.clamp_min(0)
        return squares * (losses + self.floor).square()


def _stretched(weights: Tensor) -> Tensor:
    return weights.sign() * torch.log1p(weights.abs() / _NEAR)
