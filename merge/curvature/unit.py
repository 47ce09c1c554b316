"""Grams on one scale: mean diagonal 1 per adapter and module, so that a better fitted adapter is not outvoted."""

import math

from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram, ShortGram, dense

__all__ = ["normalised_gram", "unit_factor"]


def normalised_gram(gram: Gram, where: str) -> Tensor:
    """A symmetric copy of a Gram matrix with mean diagonal 1 (trace n); zeros (no gradient came here) stay zeros.

    Args:
        gram: Shape ``(n, n)``; a short one is written out.
        where: Adapter and module, for the message.

    Raises:
        IncompatibleAdaptersError: The matrix is not square, not finite, or has a negative trace.
    """
    factor = unit_factor(gram, where)
    whole = dense(gram)
    return (whole + whole.mT).mul_(0.5 * factor)


def unit_factor(gram: Gram, where: str) -> float:
    """1 / mean diagonal of a checked Gram; 1 for zeros. NaN and infinity show in the sum of all entries."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise IncompatibleAdaptersError(
            f"curvature of {where} should be a square matrix, got shape {tuple(gram.shape)}; gather it again"
        )
    mean = gram.diagonal().mean().item()
    everything = gram.vectors.sum().item() + mean if isinstance(gram, ShortGram) else gram.sum().item()
    if not math.isfinite(everything) or mean < 0:
        raise IncompatibleAdaptersError(f"curvature of {where} is not finite and positive; gather it again")
    return 1.0 / mean if mean > 0 else 1.0
