"""Sites: what a training set added to its prior, in natural parameters.

A Gaussian posterior with precision S and mean m over a prior with precision S_0 and mean m_0 holds the site
``(S - S_0, S m - S_0 m_0)``. Sites of one parameterisation add: merging is addition, un-merging subtraction.

Source: Khan and Rue 2023 (arXiv:2107.04562); for merging, Daheim et al. 2024 (arXiv:2310.12808).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Site"]


@dataclass(frozen=True)
class Site:
    """Diagonal Gaussian site of every stochastic tensor, in examples (untempered).

    Attributes:
        precision: ``N h`` per key, clamped at 0. Higher means the data fix this entry more firmly.
        natural_mean: ``N (h + delta) m - N delta m_0`` per key, same shapes.
    """

    precision: Mapping[str, Tensor]
    natural_mean: Mapping[str, Tensor]

    def __add__(self, other: "Site") -> "Site":
        return self._combine(other, 1.0)

    def __sub__(self, other: "Site") -> "Site":
        return self._combine(other, -1.0)

    def scale(self, weight: float) -> "Site":
        """The site counted ``weight`` times (negative removes it)."""
        return Site(
            {key: weight * value for key, value in self.precision.items()},
            {key: weight * value for key, value in self.natural_mean.items()},
        )

    def _combine(self, other: "Site", sign: float) -> "Site":
        if self.precision.keys() != other.precision.keys():
            different = sorted(self.precision.keys() ^ other.precision.keys())
            raise ValueError(
                f"sites cover different tensors, first: {different[0]}; they are not of one adapter layout"
            )
        return Site(
            {key: value + sign * other.precision[key] for key, value in self.precision.items()},
            {key: value + sign * other.natural_mean[key] for key, value in self.natural_mean.items()},
        )
