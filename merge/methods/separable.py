"""Gradient matching when only the diagonal h is at hand: separable curvature and weighted re-factorisation.

With the lifted curvature P_t = row_t col_t^T of every adapter (``vlora.merge.curvature.lift``) and H_0 = tau, gradient
matching (Daheim et al. 2024, arXiv:2310.12808) entry by entry is

    Wbar = sum_t w_t (tau + P_t) o W_t / (tau + sum_t w_t P_t)

which has no low rank; its best rank-r approximation in the total precision is found by factored weighted least squares
(``vlora.merge.low_rank.als``). Each P_t is scaled to mean 1 per adapter and module, as Grams are. The gain over a tuned
sum is small in our measurements: what separates adapters is mostly off-diagonal.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.curvature.kept import Kept
from vlora.merge.curvature.lift import lift_update
from vlora.merge.low_rank.algebra import concatenate, truncate
from vlora.merge.low_rank.als import Precision, Target, weighted_als
from vlora.merge.low_rank.recompress import pooled_precision
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["separable_merge"]


def separable_merge(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    rank: int | float | None,
    tau: float,
    prior: tuple[Tensor, Tensor] | None = None,
    keep: Kept | None = None,
) -> MergedModule:
    """Precision-weighted merge of updates that carry h, re-factorised to a rank.

    Args:
        updates: Updates of one module, each with a posterior on B.
        weights: w_t per update.
        rank: Wanted rank; lossless (None) exists only for one adapter, without ``keep``.
        tau: Prior precision relative to the mean of a curvature, > 0.
        prior: Rows and columns of mean 1 whose outer product stands beside tau; ones if not given. Shapes ``(m,)``
            and ``(n,)``.
        keep: What the base is to keep: its diagonals stand in the total precision, beside an update of zero.

    Raises:
        IncompatibleAdaptersError: An update without h, or ``rank`` is lossless for several adapters.
    """
    if rank is None and (len(updates) > 1 or keep is not None):
        raise IncompatibleAdaptersError(
            f"a precision-weighted mean has no lossless factors ({updates[0].module}); set rank to a number, or "
            "use curvature: kronecker or method: task_arithmetic, which concatenate"
        )
    curvatures = [_unit_curvature(u) for u in updates]
    full = concatenate(updates, weights)
    precisions, targets = _terms(updates, weights, curvatures, full, tau, prior)
    if keep is not None:
        rows = torch.ones_like(curvatures[0][0]) if keep.rows is None else keep.rows
        precisions.append(Precision(keep.weight, rows, keep.columns))
    left, right = _scaling(precisions)
    b, a, _ = truncate(full.b, full.a, full.rank if rank is None else rank, left, right)
    b, a, clamped = weighted_als(precisions, targets, (b, a))
    merged = replace(full, b=b, a=a, precision_b=None, precision_a=None)
    exact = len(updates) == 1 and keep is None
    report = {"curvature": "separable", "exact": exact, "clamped_fraction": clamped}
    return MergedModule(pooled_precision(merged, updates, weights), report)


def _terms(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    curvatures: Sequence[tuple[Tensor, Tensor]],
    full: LoraUpdate,
    tau: float,
    prior: tuple[Tensor, Tensor] | None,
) -> tuple[list[Precision], list[Target]]:
    """Total precision tau + sum w P, and what it is multiplied with: sum w (tau + P) o W."""
    ones = prior or (torch.ones_like(curvatures[0][0]), torch.ones_like(curvatures[0][1]))
    precisions = [Precision(tau, *ones)]
    targets = [Target(Precision(tau, *ones), full.b, full.a)]  # tau sum w W in one piece
    for update, weight, (row, col) in zip(updates, weights, curvatures, strict=True):
        precisions.append(Precision(weight, row, col))
        targets.append(Target(Precision(weight, row, col), update.scale * update.b, update.a))
    return precisions, targets


def _scaling(precisions: Sequence[Precision]) -> tuple[Tensor, Tensor]:
    """Diagonal metric of the start: square roots of the row and column means of the positive precision."""
    positive = [p for p in precisions if p.weight > 0]
    row = torch.stack([p.weight * p.row * p.col.mean() for p in positive]).sum(0)
    col = torch.stack([p.weight * p.col * p.row.mean() for p in positive]).sum(0)
    return row.sqrt(), (col / col.mean()).sqrt()


def _unit_curvature(update: LoraUpdate) -> tuple[Tensor, Tensor]:
    found = lift_update(update)
    if found is None:
        raise IncompatibleAdaptersError(
            f"curvature: separable needs h of every adapter, but {update.adapter!r} has none for {update.module}; "
            "give its posterior folder instead of a plain adapter, or set curvature: auto"
        )
    row, col = found
    return row / row.mean(), col / col.mean()
