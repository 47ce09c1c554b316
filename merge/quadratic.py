"""The loss of a task around its own adapter as a quadratic form in the update, and products in that form.

    l_t(X) - l_t(W_t) ~ 1/2 c_t tr( S_t (X - W_t) G_t (X - W_t)^T )                   summed over modules

with the Kronecker-factored curvature of :mod:`vlora.curvature` (G inputs, S output gradients). Stored Grams are scaled
to mean diagonal 1, so they say which directions matter, not how much: the factor c_t comes from h, which knows. The
curvature that S (x) G pulls back to the factors of W = s B A has the diagonal sums

    sum h_B = c s^2 tr(S) tr(A G A^T),      sum h_A = c s^2 tr(B^T S B) tr(G)

so c is the ratio of both sides, added up. h alone gives S = diag(row), G = diag(col) by the lift
(:mod:`vlora.merge.lift`). With neither, S and G are the identity: a distance between updates, no loss. Units: with h,
nats summed over the task's N training examples (tokens where the loss was averaged over tokens); without, only ratios
of one task mean anything.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.merge.kronecker import normalised_gram
from vlora.merge.lift import lift_update
from vlora.merge.update import LoraUpdate

__all__ = ["Metric", "increase", "metric_of", "product"]


@dataclass(frozen=True)
class Metric:
    """Curvature of one task in one module."""

    output: Tensor | None
    """S: shape ``(m, m)``, its diagonal ``(m,)``, or None for the identity."""
    input: Tensor | None
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
    where = f"{update.adapter!r} in {update.module}"
    if update.input_gram is None:
        return _from_h(update, absolute)
    grams = [normalised_gram(update.input_gram, where)]
    grams += [] if update.output_gram is None else [normalised_gram(update.output_gram, where)]
    metric = Metric(grams[1] if len(grams) > 1 else None, grams[0], 1.0, "kronecker")
    return replace(metric, scale=_scale(metric, update)) if absolute else metric


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


def _scale(metric: Metric, update: LoraUpdate) -> float:
    """The c by which the diagonal of the pulled-back curvature has the sum of h; 1 without h."""
    if update.curvature_b is None:
        return 1.0
    square, (m, n) = update.scale**2, (update.b.shape[0], update.a.shape[1])
    reach_b = (
        square * m * (metric.from_inputs(update.a) * update.a).sum().item()
    )  # tr S = m at mean diagonal 1
    reach, found = reach_b, update.curvature_b.sum().item()
    if update.curvature_a is not None:
        reach += square * n * (metric.from_outputs(update.b) * update.b).sum().item()
        found += update.curvature_a.sum().item()
    return found / reach if reach > 0 else 0.0


def _times(matrix: Tensor | None, columns: Tensor) -> Tensor:
    if matrix is None:
        return columns
    return matrix.unsqueeze(-1) * columns if matrix.ndim == 1 else matrix @ columns
