"""Weighted low-rank factorisation in factors, for separable weights.

Finds B A of rank r that minimises the merge objective

    1/2 sum_k |X|^2_{P_k} - sum_l <P_l o W_l, X>,    P = row col^T separable,   W_l = B_l A_l,

which is, up to a constant, 1/2 |X - Wbar|^2_{Pbar} with Pbar = sum_k P_k and Wbar the precision-weighted mean. With
separable weights every quantity stays in factors, so the m x n matrix is never formed:

    for fixed A:  M_i = sum_k row_k[i] (A D(col_k) A^T)
                  R_i = sum_l row_l[i] (A D(col_l) A_l^T) B_l[i] ;   B[i] = M_i^-1 R_i       and its mirror image.

Derived for vlora. General weights make the problem NP-hard globally (Srebro and Jaakkola 2003); each half step
is exact, so the objective never rises. Cost per sweep O(T (m + n) r R + (m + n) r^3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vlora.merge.curvature.positive import subtract_clamped

__all__ = ["Precision", "Target", "weighted_als", "weighted_objective"]


class Precision(NamedTuple):
    """One separable term ``weight * row col^T`` of the total precision; shapes ``(m,)`` and ``(n,)``."""

    weight: float
    row: Tensor
    col: Tensor


class Target(NamedTuple):
    """A low-rank matrix B A that a separable precision pulls towards; shapes ``(m, R)`` and ``(R, n)``."""

    precision: Precision
    b: Tensor
    a: Tensor


def weighted_als(
    precisions: Sequence[Precision],
    targets: Sequence[Target],
    start: tuple[Tensor, Tensor],
    *,
    sweeps: int = 30,
    tolerance: float = 3e-6,
) -> tuple[Tensor, Tensor, float]:
    """Alternating least squares from a starting point of the wanted rank.

    Args:
        precisions: Terms of the total precision. Negative weights are clamped so that it stays positive.
        targets: What the sum is pulled to; may use other terms than ``precisions``.
        start: ``(b, a)`` of shapes ``(m, r)`` and ``(r, n)``.
        sweeps: Upper limit of sweeps (B, then A). Where it binds, as in one module of trained adapters that is on
            a plateau, the result stops short of the tolerance.
        tolerance: Stop when a sweep lowers the objective by less than this share. At the default, adapters of
            ``benchmarks/merge_text`` are within 3.2e-4 of the least squared distance |X - Wbar|^2 after ten sweeps in
            the mean (``benchmarks/merge_io``).

    Returns:
        ``(b, a, clamped_fraction)``.
    """
    b, a = start
    clamped, former = 0.0, float("inf")
    mirrored_p = [_mirror(p) for p in precisions]
    mirrored_t = [Target(_mirror(t.precision), t.a.mT.contiguous(), t.b.mT.contiguous()) for t in targets]
    for _ in range(sweeps):
        b, _, clamped_b = _solve_rows(precisions, targets, a)
        columns, objective, clamped_a = _solve_rows(mirrored_p, mirrored_t, b.mT)
        a, clamped = columns.mT.contiguous(), max(clamped_a, clamped_b)
        if former - objective <= tolerance * abs(objective):
            break
        former = objective
    return b, a, clamped


def weighted_objective(
    precisions: Sequence[Precision], targets: Sequence[Target], b: Tensor, a: Tensor
) -> float:
    """Value of the merge objective at B A, without the constant; lower is better."""
    quadratic = torch.einsum("mr,mrs,ms->", b, _system(precisions, a), b)
    return (0.5 * quadratic - (b * _pull(targets, a)).sum()).item()


def _solve_rows(
    precisions: Sequence[Precision], targets: Sequence[Target], a: Tensor
) -> tuple[Tensor, float, float]:
    """All rows of B for a fixed A, the objective there, -1/2 <B, R>, and the share of clamped directions.

    The ridge of 1e-12 only serves a rank-deficient A.
    """
    positive = _system([p for p in precisions if p.weight > 0], a)
    ridge = 1e-12 * positive.diagonal(dim1=-2, dim2=-1).mean().clamp_min(torch.finfo(a.dtype).tiny)
    positive = positive + ridge * torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    negative = [p._replace(weight=-p.weight) for p in precisions if p.weight < 0]
    matrix, clamped = positive, 0.0
    if negative:
        matrix, clamped = subtract_clamped(positive, _system(negative, a))
    root = torch.linalg.cholesky(matrix)
    pull = _pull(targets, a)
    rows = torch.cholesky_solve(pull.unsqueeze(-1), root).squeeze(-1)
    return rows, -0.5 * (rows * pull).sum().item(), clamped


def _system(precisions: Sequence[Precision], a: Tensor) -> Tensor:
    """M, shape ``(m, r, r)``."""
    rows = torch.stack([p.weight * p.row for p in precisions], dim=1)
    grams = torch.stack([(a * p.col) @ a.mT for p in precisions])
    return torch.einsum("mk,krs->mrs", rows, grams)


def _pull(targets: Sequence[Target], a: Tensor) -> Tensor:
    """R, shape ``(m, r)``."""
    total = torch.zeros(targets[0].b.shape[0], a.shape[0], dtype=a.dtype, device=a.device)
    for (weight, row, col), b_t, a_t in targets:
        total += weight * row[:, None] * (b_t @ ((a * col) @ a_t.mT).mT)
    return total


def _mirror(precision: Precision) -> Precision:
    return Precision(precision.weight, precision.col, precision.row)
