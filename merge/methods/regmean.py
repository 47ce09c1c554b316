"""RegMean: outputs closest to every adapter's on its own inputs (Jin et al. 2023, arXiv:2212.09849).

    X = argmin sum_t w_t |X x - W_t x|^2  over the inputs x of adapter t
    X = (sum_t w_t W_t G_t) (sum_t w_t G_t)^-1,     G_t = sum x x^T shrunk:  a G + (1 - a) diag(G)

Notation (paper -> code): G -> ``activation_gram`` (the unweighted Gram of a module's inputs), a -> ``shrink`` (the
factor on off-diagonal entries). The base weights drop out, so the same holds for updates. In factors, B stays and
A_t' = A_t G_t (sum w G)^-1: concatenation is lossless, and a lower rank is the best in the metric sum_t w_t G_t.

The Gram in ``curvature.safetensors`` by default, ``input_gram``, weighs inputs by gradients. It is another matrix and
is never taken here: ``method: gradient_matching`` uses it. Deviations: every G_t is scaled to mean diagonal 1, so that
more or longer inputs do not outvote, and gets 1e-6 on the diagonal, so that inputs which never occur do not make the
sum singular.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.grams import product
from vlora.merge.curvature.summed import weighted_sum
from vlora.merge.curvature.total import DenseTotal
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.low_rank.algebra import concatenate, resolve_rank
from vlora.merge.low_rank.recompress import pooled_precision, recompress
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["Shrunk", "regmean", "regmean_merge", "shrunk_total"]

_JITTER = 1e-6


def regmean(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    shrink: float = 0.9,
) -> MergedModule:
    """RegMean merge of the updates of one module.

    Args:
        updates: Updates with ``activation_gram``; an adapter without the module has no say in it.
        weights: w_t > 0; only their ratios count.
        rank: ``auto``, ``keep``, ``lossless``, a number, or a share of energy in (0, 1).
        shrink: Factor on the off-diagonal entries of every Gram, in [0, 1]; 0 is an average per input.

    Returns:
        The merged update; a truncation is measured on the adapters' inputs.

    Raises:
        ConfigError: A weight is negative.
        IncompatibleAdaptersError: An adapter has no unweighted Gram, or one that does not fit.
    """
    updates, weights = present(updates, weights)
    if min(weights) < 0:
        raise ConfigError(
            f"RegMean takes positive weights, got {min(weights):g}; to subtract an adapter use method: "
            "gradient_matching or task_arithmetic"
        )
    wanted = resolve_rank(updates, rank)
    grams = [_shrunk(u, shrink) for u in updates]
    total = shrunk_total(grams, weights, updates[0].module)
    solved = total.solve(torch.cat([u.a @ g for u, g in zip(updates, grams, strict=True)]))
    moved = [
        replace(u, a=a, precision_a=None, precision_b=None)
        for u, a in zip(updates, solved.split([u.rank for u in updates]), strict=True)
    ]
    full = concatenate(moved, weights)
    done = recompress(full, updates, [1.0] * len(updates), wanted, metrics=(None, total))
    merged = pooled_precision(done.update, updates, [1.0] * len(updates))
    return MergedModule(merged, {"clamped_fraction": 0.0, **done.report, "curvature": "activations"})


@dataclass(frozen=True)
class Shrunk:
    """a G + (1 - a) diag(G) + 1e-6 I for a Gram of mean diagonal 1; ``rows @ gram`` is the product.

    The matrix stays as it is stored: at 4096 inputs a copy takes 128 MiB.
    """

    gram: Tensor
    factor: float
    """On every entry of the stored matrix."""
    diagonal: Tensor
    """What the diagonal has besides, shape ``(n,)``."""

    @classmethod
    def of(cls, gram: Tensor, unit: float, where: str, shrink: float) -> "Shrunk":
        """From a Gram as it is stored.

        Args:
            gram: Shape ``(n, n)``.
            unit: What gives it mean diagonal 1, see :func:`vlora.merge.curvature.unit.unit_factor`.
            where: Adapter and module, for the message.
            shrink: a, in [0, 1].

        Raises:
            IncompatibleAdaptersError: It is zero: no input was ever seen.
        """
        diagonal = unit * gram.diagonal().double()
        if not diagonal.any():
            raise IncompatibleAdaptersError(
                f"the activation Gram of {where} is zero; gather it on data of the task"
            )
        return cls(gram, shrink * unit, (1 - shrink) * diagonal + _JITTER)

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X G."""
        return product(rows, self.gram).mul_(self.factor).add_(rows * self.diagonal)


def shrunk_total(grams: Sequence[Shrunk], weights: Sequence[float], where: str) -> DenseTotal:
    """The sum of the w_t G_t, in double precision."""
    scaled = [weight * gram.factor for weight, gram in zip(weights, grams, strict=True)]
    total = weighted_sum([gram.gram for gram in grams], scaled, torch.float64)
    for weight, gram in zip(weights, grams, strict=True):
        total.diagonal().add_(gram.diagonal, alpha=weight)
    return DenseTotal(total, where, "lower shrink")


def regmean_merge(
    tensors: Sequence[Tensor], grams: Sequence[Shrunk], weights: Sequence[float], total: DenseTotal
) -> Tensor:
    """RegMean on plain weights of shape ``(m, n)``, or on some of their rows.

    Args:
        tensors: W_t.
        grams: G_t of size n.
        weights: w_t > 0.
        total: :func:`shrunk_total` of these.
    """
    pulled = torch.zeros_like(tensors[0])
    for weight, tensor, gram in zip(weights, tensors, grams, strict=True):
        pulled.add_(tensor @ gram, alpha=weight)
    return total.solve(pulled)


def _shrunk(update: LoraUpdate, shrink: float) -> Shrunk:
    gram, where = _gram(update), f"{update.adapter!r} in {update.module}"
    return Shrunk.of(gram, unit_factor(gram, where), where, shrink)


def _gram(update: LoraUpdate) -> Tensor:
    where = f"{update.adapter!r} in {update.module}"
    gram = update.activation_gram
    if gram is None:
        weighted = "only the gradient-weighted one" if update.input_gram is not None else "none"
        raise IncompatibleAdaptersError(
            f"method: regmean needs the unweighted Gram of every module's inputs, but {where} has {weighted}; gather "
            "it with collect_curvature(..., activations=True), or use method: gradient_matching"
        )
    if gram.ndim == 2 and gram.shape[0] != update.a.shape[1]:
        raise IncompatibleAdaptersError(
            f"the activation Gram of {where} has {gram.shape[0]} inputs, its A has {update.a.shape[1]}; the file "
            "belongs to another adapter"
        )
    return gram
