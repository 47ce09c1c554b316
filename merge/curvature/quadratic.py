"""The loss of a task around its own adapter as a quadratic form in the update, and products in that form.

    l_t(X) - l_t(W_t) ~ 1/2 c_t tr( S_t (X - W_t) G_t (X - W_t)^T )                   summed over modules

with the Kronecker-factored curvature of :mod:`vlora.curvature` (G inputs, S output gradients). Stored Grams are scaled
to mean diagonal 1, so they say which directions matter, not how much: the factor c_t comes from h, which knows. The
curvature that S (x) G pulls back to the factors of W = s B A has the diagonal sums

    sum h_B = c s^2 tr(S) tr(A G A^T),      sum h_A = c s^2 tr(B^T S B) tr(G)

so c is the ratio of both sides, added up. h alone gives S = diag(row), G = diag(col) by the lift
(:mod:`vlora.merge.curvature.lift`). With neither, S and G are the identity: a distance between updates, no loss. Units:
with h, nats summed over the task's N training examples (tokens where the loss was averaged over tokens); without, only
ratios of one task mean anything.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.grams import Gram
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.update import LoraUpdate

__all__ = ["Metric", "h_scale", "increase", "metric_of", "product"]


@dataclass(frozen=True)
class Metric:
    """Curvature of one task in one module."""

    output: Gram | None
    """S: shape ``(m, m)``, its diagonal ``(m,)``, or None for the identity."""
    input: Gram | None
    """G: shape ``(n, n)``, its diagonal ``(n,)``, or None for the identity."""
    scale: float
    """c."""
    kind: str
    """``kronecker``, ``separable`` or ``isotropic``."""

    def from_outputs(self, b: Tensor) -> Tensor:
        """S B for B of shape ``(m, r)``."""
        return _times(self.output, b)

    def from_inputs(self, a: Tensor) -> Tensor:
        """A G for A of shape ``(r, n)``."""
        return _times(self.input, a.mT).mT


def metric_of(update: LoraUpdate, absolute: bool = True) -> Metric:
    """The best curvature that an adapter carries for a module.

    Args:
        update: The adapter's own update there, with its posterior and Grams.
        absolute: Scale by h where there is h; False leaves Grams at mean diagonal 1 and the lift at mean 1, for an
            adapter that has h on some modules only.
    """
    if update.input_gram is None:
        return _from_h(update, absolute)
    where = f"{update.adapter!r} in {update.module}"
    unit = unit_factor(update.input_gram, where)  # folded into the scale: a Gram is large, and not copied
    if update.output_gram is not None:
        unit *= unit_factor(update.output_gram, where)
    metric = Metric(update.output_gram, update.input_gram, unit, "kronecker")
    if not absolute or update.curvature_b is None:
        return metric
    reach_b = (metric.from_inputs(update.a) * update.a).sum().item()
    reach_a = (metric.from_outputs(update.b) * update.b).sum().item()
    return replace(metric, scale=unit * h_scale(metric, update, reach_b, reach_a))


def h_scale(metric: Metric, update: LoraUpdate, reach_b: float, reach_a: float) -> float:
    """The c by which the pulled-back unit curvature has the sum of h; 1 without h.

    Args:
        metric: Curvature of the adapter, not yet scaled by h.
        update: The adapter's own update.
        reach_b: tr(A G A^T) of the stored G.
        reach_a: tr(B^T S B) of the stored S.
    """
    if update.curvature_b is None:
        return 1.0
    outputs = update.b.shape[0] if metric.output is None else metric.output.diagonal().sum().item()
    inputs = update.a.shape[1] if metric.input is None else metric.input.diagonal().sum().item()
    found, reach = update.curvature_b.sum().item(), outputs * reach_b
    if update.curvature_a is not None:
        found, reach = found + update.curvature_a.sum().item(), reach + inputs * reach_a
    reach *= update.scale**2 * metric.scale
    return found / reach if reach > 0 else 0.0


def product(metric: Metric, first: LoraUpdate, second: LoraUpdate) -> float:
    """The product c tr(S W_1 G W_2^T), from r x r matrices."""
    if not first.rank or not second.rank:
        return 0.0
    core = (metric.from_outputs(first.b).mT @ second.b) * (metric.from_inputs(first.a) @ second.a.mT)
    return metric.scale * first.scale * second.scale * core.sum().item()


def increase(metric: Metric, merged: LoraUpdate, own: LoraUpdate) -> float:
    """Predicted loss increase 1/2 c tr(S (X - W) G (X - W)^T) of one module; 0 is best, the task is left alone."""
    both = product(metric, merged, merged) - 2 * product(metric, merged, own) + product(metric, own, own)
    return max(0.0, 0.5 * both)


def _from_h(update: LoraUpdate, absolute: bool) -> Metric:
    lifted = lift_update(update)
    if lifted is None:
        return Metric(None, None, 1.0, "isotropic")
    row, col = lifted
    size = 1.0 if absolute else 1.0 / max((row.mean() * col.mean()).item(), torch.finfo(row.dtype).tiny)
    return Metric(row, col, size, "separable")


def _times(matrix: Gram | None, columns: Tensor) -> Tensor:
    if matrix is None:
        return columns
    if isinstance(matrix, Tensor) and matrix.ndim == 1:
        return matrix.unsqueeze(-1) * columns
    return (
        columns.mT @ matrix
    ).mT  # symmetric; few rows times a matrix are faster than a matrix times few columns
