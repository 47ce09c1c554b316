"""Kronecker gradient matching under a prior that is no multiple of the identity.

With H_0 = tau I (x) P,

    X = sum_t (w_t s_t B_t) A_t',      A_t' = A_t (G_t + tau P) (tau P + sum_u w_u G_u)^-1

as :mod:`vlora.merge.kronecker.closed_form` with tau P for tau I, all n x n matrices written out. What the base is to
keep adds to the total alone, as there.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram, dense
from vlora.merge.curvature.kept import Kept, total_with
from vlora.merge.curvature.total import Total
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.kronecker.closed_form import kronecker_solution
from vlora.merge.low_rank.algebra import concatenate
from vlora.merge.update import LoraUpdate

__all__ = ["solution_under_prior"]


def solution_under_prior(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    tau: float,
    prior: Gram | None,
    keep: Kept | None = None,
) -> tuple[LoraUpdate, float, Total]:
    """:func:`vlora.merge.kronecker.closed_form.kronecker_solution` with tau P; that itself where ``prior`` is None.

    Args:
        updates: Updates of one module, each with ``input_gram``.
        weights: w_t per update.
        tau: Prior precision relative to the mean diagonal of a Gram, > 0.
        prior: P, positive definite with mean diagonal 1. Shape ``(n, n)``.
        keep: What the base is to keep.

    Raises:
        IncompatibleAdaptersError: A Gram is missing, damaged, or of another size than the factors.
    """
    if prior is None:
        return kronecker_solution(updates, weights, tau, keep)
    base, where = tau * dense(prior), updates[0].module
    grams = [_unit(u) for u in updates]
    ones = [1.0] * (1 + len(grams))
    total, clamped = total_with(keep, [base, *grams], ones, [1.0, *weights], 0.0, where)
    damped = [gram + base for gram in grams]
    pulled = torch.cat([u.a @ d for u, d in zip(updates, damped, strict=True)])
    rows = total.solve(pulled).split([u.rank for u in updates])
    moved = [_moved(u, a, d, total) for u, a, d in zip(updates, rows, damped, strict=True)]
    return concatenate(moved, weights), clamped, total


def _moved(update: LoraUpdate, a: Tensor, damped: Tensor, total: Total) -> LoraUpdate:
    """A' with the variances that A has after the same map."""
    if update.precision_a is None:
        return replace(update, a=a)
    precision = 1.0 / total.spread(update.precision_a.reciprocal(), damped, 1.0, 0.0)
    return replace(update, a=a, precision_a=precision, prior_a=min(update.prior_a, precision.min().item()))


def _unit(update: LoraUpdate) -> Tensor:
    where = f"{update.adapter!r} in {update.module}"
    if update.input_gram is None:
        raise IncompatibleAdaptersError(
            f"curvature: kronecker needs the input Gram of every adapter, but {where} has none; gather curvature for "
            "it, or set curvature: auto"
        )
    return normalised_gram(update.input_gram, where)
