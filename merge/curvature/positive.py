"""Differences of precisions that must stay positive (negative merge weights, removal)."""

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError

__all__ = [
    "CLAMP_LIMIT",
    "PRECISION_FLOOR",
    "add_clamped",
    "check_definite",
    "cholesky",
    "subtract_clamped",
]

PRECISION_FLOOR = 0.05
"""Smallest share of the positive part that a difference of precisions may fall to."""
CLAMP_LIMIT = 0.5
"""Largest clamped share of a module that a merge accepts; beyond it the clamp makes the result, not the data."""


_ROUNDED = 0.05
"""Share of the mean eigenvalue down to which a negative one passes for rounding of stored Grams (bfloat16 at worst)."""


def cholesky(matrix: Tensor, where: str, cure: str = "raise tau") -> Tensor:
    """Cholesky factor of a total curvature.

    Args:
        matrix: Shape ``(..., n, n)``, symmetric.
        where: The module, for messages.
        cure: What adds to the diagonal, for messages.

    Raises:
        IncompatibleAdaptersError: The matrix is indefinite: by rounding, or since one of the Grams is no Gram.
    """
    root, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        values = torch.linalg.eigvalsh(matrix)
        low, mean = values.min().item(), values.mean().item()
        if low > -_ROUNDED * mean:
            reason = f"by rounding (an eigenvalue of {low:.1g} among a mean of {mean:.2g}), as stored Grams are; {cure}"
        else:
            reason = "a stored Gram has negative eigenvalues and is none; gather the curvature again"
        raise IncompatibleAdaptersError(f"the total curvature in {where} is indefinite: {reason}")
    return root


def check_definite(module: str, clamped: float) -> None:
    """Refuse a merge whose precision is mostly the clamp's.

    Args:
        module: For the message.
        clamped: Share of clamped directions or entries.

    Raises:
        IncompatibleAdaptersError: The share is above :data:`CLAMP_LIMIT`.
    """
    if clamped > CLAMP_LIMIT:
        raise IncompatibleAdaptersError(
            f"indefinite precision in {module}: negative weights outweigh all evidence in {clamped:.0%} of it; use "
            "smaller ones, or negative: negate (or method: task_arithmetic) to subtract the update"
        )


def add_clamped(positive: Tensor, change: Tensor, floor: float = PRECISION_FLOOR) -> tuple[Tensor, float]:
    """Add a signed change to a diagonal precision, never below ``floor`` times the positive part.

    Args:
        positive: Precision from the prior and all positive weights, any shape.
        change: What negative weights add (entries <= 0), same shape.
        floor: Share of ``positive`` that is kept at least.

    Returns:
        The precision, and the share of entries that had to be clamped (0 is best).
    """
    total = positive + change
    low = floor * positive
    clamped = (total < low) & (change < 0)
    return torch.where(clamped, low, total), clamped.double().mean().item()


def subtract_clamped(
    positive: Tensor, negative: Tensor, floor: float = PRECISION_FLOOR
) -> tuple[Tensor, float]:
    """P - Q for precision matrices, kept at least ``floor`` P in the order of positive matrices.

        P = L L^T,  K = I - L^-1 Q L^-T = U diag(k) U^T,  result = L U diag(max(k, floor)) U^T L^T

    Args:
        positive: P, positive definite. Shape ``(..., n, n)``.
        negative: Q, positive semi-definite, same shape.
        floor: Smallest relative eigenvalue.

    Returns:
        The difference, and the share of clamped directions (0 is best).
    """
    if not negative.any():
        return positive, 0.0
    root = cholesky(positive, "a module")
    half = torch.linalg.solve_triangular(root, negative, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    identity = torch.eye(positive.shape[-1], dtype=positive.dtype, device=positive.device)
    values, vectors = torch.linalg.eigh(identity - 0.5 * (whitened + whitened.mT))
    factor = root @ (vectors * values.clamp_min(floor).sqrt().unsqueeze(-2))
    return factor @ factor.mT, (values < floor).double().mean().item()
