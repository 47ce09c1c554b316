"""Curvature lift: from the diagonals of the LoRA factors to a separable curvature of the weight matrix.

IVON's h are diagonals of the pulled-back Hessian. For a diagonal Hessian H_W of the update W = s B A,

    h_B[i,k] = s^2 sum_j H_W[i,j] A[k,j]^2 ,      h_A[k,j] = s^2 sum_i H_W[i,j] B[i,k]^2 ,

(m + n) r equations for m n unknowns; the separable model H_W ~ row col^T has m + n and is found by alternating
least squares. It recovers a separable H_W exactly and is an approximation of any other. Derived for vlora;
the shape is that of Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) and of diagonal K-FAC.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.update import LoraUpdate

__all__ = ["lift", "lift_update", "pull_back"]

_FLOOR = 1e-6


def lift(
    curvature_b: Tensor, curvature_a: Tensor | None, b: Tensor, a: Tensor, scale: float, iterations: int = 50
) -> tuple[Tensor, Tensor]:
    """Separable curvature row col^T of W = s B A from the curvatures of its factors.

        q = s^2 (A o A) col,    row = h_B q / (q . q)
        p = s^2 (B o B)^T row,  col = h_A^T p / (p . p)        until it stands still

    Args:
        curvature_b: Diagonal Hessian of B, >= 0. Shape ``(m, r)``.
        curvature_a: Diagonal Hessian of A, >= 0, shape ``(r, n)``; None (frozen A) leaves all columns alike.
        b: Mean of B. Shape ``(m, r)``. If it is zero, ``curvature_a`` says nothing and columns stay alike.
        a: Mean of A. Shape ``(r, n)``.
        scale: LoRA scaling s.
        iterations: Upper limit of sweeps, O((m + n) r) each.

    Returns:
        ``(row, col)`` of shapes ``(m,)`` and ``(n,)``, positive, col with mean 1; the units are those of the
        input (a curvature per squared weight). Entries are kept above 1e-6 of the mean of their vector.
    """
    a_square, b_square = scale**2 * a.square(), scale**2 * b.square()
    col = torch.ones(a.shape[1], dtype=a.dtype, device=a.device)
    row = _solve(curvature_b, a_square @ col)
    for _ in range(iterations):
        if curvature_a is None or not b.any():
            break
        new_col = _solve(curvature_a.mT, b_square.mT @ row)
        new_col = new_col / new_col.mean()
        change = (new_col - col).abs().max()
        col, row = new_col, _solve(curvature_b, a_square @ new_col)
        if change < 1e-14:
            break
    return row, col


def lift_update(update: LoraUpdate) -> tuple[Tensor, Tensor] | None:
    """Separable curvature, in examples, of one update; None when its B has no h."""
    if update.curvature_b is None:
        return None
    return lift(update.curvature_b, update.curvature_a, update.b, update.a, update.scale)


def pull_back(
    b: Tensor, a: Tensor, scale: float, curvatures: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Diagonal curvature of factors B and A under sum_t w_t row_t col_t^T: the inverse direction of the lift.

        h_B[i,k] = s^2 sum_t w_t row_t[i] (A o A col_t)[k] ,   h_A[k,j] = s^2 sum_t w_t col_t[j] (B o B)^T row_t [k]

    It is conditional on the other factor (it does not count what the two share), as IVON's own h is.

    Args:
        b: Shape ``(m, r)``.
        a: Shape ``(r, n)``.
        scale: LoRA scaling s.
        curvatures: ``(row, col)`` per adapter.
        weights: w_t >= 0 per adapter.

    Returns:
        Curvatures of B and of A, same shapes.
    """
    square = scale**2
    curvature_b, curvature_a = torch.zeros_like(b), torch.zeros_like(a)
    for weight, (row, col) in zip(weights, curvatures, strict=True):
        curvature_b += weight * square * torch.outer(row, a.square() @ col)
        curvature_a += weight * square * torch.outer(b.square().mT @ row, col)
    return curvature_b, curvature_a


def _solve(curvature: Tensor, reach: Tensor) -> Tensor:
    """Least squares for x in ``curvature[i, k] = x[i] reach[k]``, floored to stay a usable precision."""
    norm = reach.square().sum()
    if norm == 0:
        return torch.ones(curvature.shape[0], dtype=curvature.dtype, device=curvature.device)
    x = curvature @ reach / norm
    mean = x.mean()
    return x.clamp_min(_FLOOR * mean) if mean > 0 else torch.ones_like(x)
