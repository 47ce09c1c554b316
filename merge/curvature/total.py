r"""The total curvature tau I + sum_t w_t G_t of a module: products with it and systems in it, at its real size.

Whole Grams add up to a matrix of n x n (:class:`DenseTotal`). Short ones, G_t = V_t diag(d_t) V_t^T + e_t I with k_t
directions (:class:`vlora.grams.ShortGram`), add up to a matrix on the span of all directions and a number
beside it (:class:`SpanTotal`), K = sum k_t:

    tau I + sum_t w_t G_t = Q B Q^T + c (I - Q Q^T),       (.)^-1 = Q B^-1 Q^T + (I - Q Q^T) / c
    [V_1 .. V_T] = Q R,    c = tau + sum_t w_t e_t,    B = c I + sum_t w_t R_t diag(d_t) R_t^T

which is Woodbury's identity in an orthonormal basis: O(n K^2) operations, nothing of n x n.

Accuracy of a dense solve: below 1024 inputs by Cholesky in double precision. From there on the factor is in float32 and
the solution is refined with residuals in double precision (Wilkinson; Higham 2002, chapter 12) until every row has a
residual of at most 1e-9 of its right-hand side; one or two corrections do. A Gram has mean diagonal 1, so the condition
number is at most n (tau + sum w) / tau: 6e4 for n = 4096, tau = .3 and four adapters, far below 1 / eps of float32. If
it does not converge nevertheless, double precision decides.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from vlora.grams import Gram, ShortGram, dense
from vlora.merge.curvature.positive import PRECISION_FLOOR, cholesky, subtract_clamped
from vlora.merge.curvature.summed import weighted_sum

__all__ = ["DenseTotal", "SpanTotal", "Total", "total_curvature"]

SINGLE_FROM = 1024
"""Inputs from which on the Cholesky factor is in float32, with refinement."""
RESIDUAL = 1e-9
"""Largest residual of a row of a refined solution, relative to its right-hand side."""
_CORRECTIONS = 4
_MARGIN = (
    100.0  # a correction shrinks the residual as the one before did; with this to spare it is not looked at
)
_ROWS = 512


class Total(Protocol):
    """A symmetric positive definite n x n matrix T; ``rows @ T`` is the product."""

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X T for X of shape ``(r, n)``."""
        ...

    def solve(self, rows: Tensor) -> Tensor:
        """Y T^-1 for Y of shape ``(r, n)``."""
        ...

    def rough(self, rows: Tensor) -> Tensor:
        """Y T^-1 from one factor in the rows' precision, where a thousandth is enough."""
        ...

    def spread(self, variance: Tensor, gram: Gram, factor: float, tau: float) -> Tensor:
        """sum_i v_ki M_ij^2 with M = (factor G + tau I) T^-1: variances of rows that were multiplied with M."""
        ...


class DenseTotal:
    """A matrix written out.

    Args:
        matrix: Shape ``(n, n)``, positive definite.
        where: The module, for the message.
        cure: What adds to the diagonal, for the message.
    """

    def __init__(self, matrix: Tensor, where: str, cure: str = "raise tau") -> None:
        self.matrix, self.where, self.cure = matrix, where, cure

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X T."""
        return rows @ self.matrix

    def solve(self, rows: Tensor) -> Tensor:
        """Y T^-1 to rounding, or to a residual of 1e-9 per row from 1024 inputs on."""
        refined = self._refined(rows) if len(self.matrix) >= SINGLE_FROM else None
        return _solved(self.factor, rows) if refined is None else refined

    def rough(self, rows: Tensor) -> Tensor:
        """Y T^-1 without refinement."""
        root = self.single if rows.dtype == torch.float32 else self.factor
        return _solved(self.factor if root is None else root, rows)

    def spread(self, variance: Tensor, gram: Gram, factor: float, tau: float) -> Tensor:
        """As of :class:`Total`; in float32 from 1024 inputs on, which a variance bears."""
        root = self.single if len(self.matrix) >= SINGLE_FROM else None
        root = self.factor if root is None else root
        damped = (factor * dense(gram)).to(root.dtype)
        damped.diagonal().add_(tau)
        moved = torch.zeros_like(variance, dtype=root.dtype)
        for place in range(0, len(damped), _ROWS):
            block = _solved(root, damped[place : place + _ROWS])
            moved += variance[:, place : place + _ROWS].to(root.dtype) @ block.square_()
        return moved.to(variance.dtype)

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor in the matrix's precision."""
        return cholesky(self.matrix, self.where, self.cure)

    @cached_property
    def single(self) -> Tensor | None:
        """Cholesky factor in float32, or None where float32 finds the matrix indefinite."""
        root, failed = torch.linalg.cholesky_ex(self.matrix.float())
        return None if failed.any() else root

    def _refined(self, rows: Tensor) -> Tensor | None:
        """Solution from the float32 factor, corrected; None where that does not converge."""
        if self.single is None:
            return None
        found, rest = torch.zeros_like(rows), rows
        size = rows.norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
        left, rate = torch.ones_like(size), torch.ones_like(size)
        for _ in range(1 + _CORRECTIONS):
            found = found + _solved(self.single, rest.float()).to(rows.dtype)
            if (_MARGIN * rate * left <= RESIDUAL).all():
                return found
            rest, before = rows - found @ self.matrix, left
            left = rest.norm(dim=1) / size
            if (left <= RESIDUAL).all():
                return found
            rate = left / before
        return None


class SpanTotal:
    """Q B Q^T + c (I - Q Q^T).

    Args:
        basis: Q, orthonormal columns, shape ``(n, K)``.
        block: B, positive definite, shape ``(K, K)``.
        rest: c > 0.
    """

    def __init__(self, basis: Tensor, block: Tensor, rest: float) -> None:
        self.basis, self.block, self.rest = basis, block, rest

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X T."""
        inside = rows @ self.basis
        return (inside @ self.block - self.rest * inside) @ self.basis.mT + self.rest * rows

    def solve(self, rows: Tensor) -> Tensor:
        """Y T^-1."""
        inside = rows @ self.basis
        return (_solved(self.factor, inside) - inside / self.rest) @ self.basis.mT + rows / self.rest

    def rough(self, rows: Tensor) -> Tensor:
        """Y T^-1."""
        return self.solve(rows)

    def spread(self, variance: Tensor, gram: Gram, factor: float, tau: float) -> Tensor:
        """As of :class:`Total`: M is (c_t / c) I + Q M_Q Q^T, of which some rows at a time are written out."""
        assert isinstance(gram, ShortGram)
        outside = tau + factor * gram.tail
        ratio = outside / self.rest
        size = len(self.block)
        damped = _inside(self.basis, gram, factor) + outside * torch.eye(size).to(self.block)
        mixing = _solved(self.factor, damped)
        mixing.diagonal().sub_(ratio)
        left = self.basis @ mixing
        moved = torch.zeros_like(variance)
        for place in range(0, len(left), _ROWS):
            block = left[place : place + _ROWS] @ self.basis.mT
            block[:, place : place + _ROWS].diagonal().add_(ratio)
            moved += variance[:, place : place + _ROWS] @ block.square_()
        return moved

    def short(self) -> ShortGram:
        """The matrix as a Gram of K directions."""
        values, vectors = torch.linalg.eigh(self.block)
        return ShortGram(self.basis @ vectors.flip(1), values.flip(0), self.rest)

    @cached_property
    def factor(self) -> Tensor:
        """Cholesky factor of B."""
        return cholesky(self.block, "a module")


def total_curvature(
    grams: Sequence[Gram],
    factors: Sequence[float],
    weights: Sequence[float],
    tau: float,
    where: str = "a module",
    dtype: torch.dtype | None = None,
) -> tuple[DenseTotal | SpanTotal, float]:
    """Sum ``tau I + sum_t w_t f_t G_t``, kept positive definite when weights are negative.

    Args:
        grams: G_t of one size.
        factors: f_t > 0.
        weights: w_t.
        tau: Prior precision, > 0.
        where: The module, for messages.
        dtype: Of the sum of whole Grams; that of the Grams if not given.

    Returns:
        The sum, and the share of clamped directions. In its span if all Grams are short and their directions together
        are fewer than half of n.
    """
    shorts = [gram for gram in grams if isinstance(gram, ShortGram)]
    scaled = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    if len(shorts) == len(grams) and 2 * sum(g.vectors.shape[1] for g in shorts) < grams[0].shape[0]:
        return _span(shorts, scaled, tau)
    total = weighted_sum([dense(gram) for gram in grams], [max(0.0, w) for w in scaled], dtype)
    total.diagonal().add_(tau)
    clamped = 0.0
    if min(weights) < 0:
        total, clamped = subtract_clamped(
            total, weighted_sum([dense(g) for g in grams], [max(0.0, -w) for w in scaled], dtype)
        )
    return DenseTotal(total, where), clamped


def _span(grams: Sequence[ShortGram], weights: Sequence[float], tau: float) -> tuple[SpanTotal, float]:
    """The total of short Grams; directions outside the span are clamped as one number, and count."""
    basis = torch.linalg.qr(torch.cat([gram.vectors for gram in grams], dim=1))[0]
    size, identity = basis.shape[1], torch.eye(basis.shape[1]).to(basis)
    parts, rests = [tau * identity, torch.zeros_like(identity)], [tau, 0.0]
    for gram, weight in zip(grams, weights, strict=True):
        side = 0 if weight > 0 else 1
        parts[side] = parts[side] + _inside(basis, gram, abs(weight)) + abs(weight) * gram.tail * identity
        rests[side] += abs(weight) * gram.tail
    if min(weights) >= 0:
        return SpanTotal(basis, parts[0], rests[0]), 0.0
    block, share = subtract_clamped(parts[0], parts[1])
    rest = max(rests[0] - rests[1], PRECISION_FLOOR * rests[0])
    low = rests[0] - rests[1] < PRECISION_FLOOR * rests[0]
    clamped = (share * size + low * (len(basis) - size)) / len(basis)
    return SpanTotal(basis, block, rest), clamped


def _inside(basis: Tensor, gram: ShortGram, factor: float) -> Tensor:
    """Q^T V diag(factor (values - tail)) V^T Q, shape ``(K, K)``."""
    seen = basis.mT @ gram.vectors
    return (seen * (factor * (gram.values - gram.tail))) @ seen.mT


def _solved(root: Tensor, rows: Tensor) -> Tensor:
    """Y (L L^T)^-1; with the unknowns as rows it is twice as fast as ``cholesky_solve``."""
    half = torch.linalg.solve_triangular(root.mT, rows, upper=True, left=False)
    return torch.linalg.solve_triangular(root, half, upper=False, left=False)
