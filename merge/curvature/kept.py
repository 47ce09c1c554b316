"""A term of the total curvature that brings no update: what holds a merge at the base model."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vlora.grams import Gram
from vlora.merge.curvature.total import DenseTotal, SpanTotal, total_curvature
from vlora.merge.curvature.unit import unit_factor

__all__ = ["Kept", "total_with"]


@dataclass(frozen=True)
class Kept:
    """w P_out (x) P_in of one module, both at mean diagonal 1 once they are multiplied with their unit factors."""

    weight: float
    """w > 0."""
    input: Gram
    """P_in as it is stored. Shape ``(n, n)``."""
    output: Gram | None = None
    """P_out as it is stored, or None for the identity. Shape ``(m, m)``."""
    where: str = "keep"
    """File and module, for messages."""

    @property
    def columns(self) -> Tensor:
        """Diagonal of P_in, mean 1. Shape ``(n,)``."""
        return self.input.diagonal() * unit_factor(self.input, self.where)

    @property
    def rows(self) -> Tensor | None:
        """Diagonal of P_out, mean 1, or None for ones. Shape ``(m,)``."""
        return None if self.output is None else self.output.diagonal() * unit_factor(self.output, self.where)


def total_with(
    keep: Kept | None,
    grams: Sequence[Gram],
    factors: Sequence[float],
    weights: Sequence[float],
    tau: float,
    where: str,
) -> tuple[DenseTotal | SpanTotal, float]:
    """:func:`vlora.merge.curvature.total.total_curvature` with the term ``w P_in``, if there is one.

    Args:
        keep: The term.
        grams: G_t of one size.
        factors: f_t > 0.
        weights: w_t.
        tau: Prior precision, > 0.
        where: The module, for messages.
    """
    if keep is None:
        return total_curvature(grams, factors, weights, tau, where)
    own = unit_factor(keep.input, keep.where)
    return total_curvature([*grams, keep.input], [*factors, own], [*weights, keep.weight], tau, where)
