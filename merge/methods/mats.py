r"""MaTS: models matched in their task parameter subspaces (Tam, Bansal and Raffel 2023, TMLR 2024, arXiv:2312.04339).

    theta' = argmin sum_t w_t |theta - theta_t|^2_{C_t},    (sum_t w_t C_t) theta' = sum_t w_t C_t theta_t

solved by conjugate gradients, so that C_t may be any matrix that can be multiplied with. The best in the paper is the
block-diagonal K-FAC Fisher, C_t = S_t (x) G_t per module, for which one multiplication is S_t X G_t and

    sum_t w_t S_t X G_t + lambda X = sum_t w_t S_t W_t G_t + lambda sum_t w_t W_t

Notation (paper -> code): theta_t - theta_0 -> ``update``; K-FAC blocks A, G (of inputs, of output gradients) ->
``input_gram``, ``output_gram``; the linear system -> :mod:`vlora.merge.kronecker.system`.

Against gradient matching (:mod:`vlora.merge.kronecker.closed_form`), the nearest relative in this package:
- MaTS weighs both sides of every update; the closed form takes S_t = I, which is why it has one. With all S_t equal to
  I the two have the same solution but for the prior below.
- MaTS is a weighted mean: without lambda, the base model has no part in it. Here the prior of gradient matching,
  H_0 = lambda I with the right-hand side lambda sum_t w_t W_t, is added (``tau``, .3 by default): one adapter comes
  back unchanged, and directions in which no adapter has curvature get the sum. ``tau`` -> 0 is the paper's objective.
- ``damping`` mixes the two: S_t becomes (S_t + d I) / (1 + d), as K-FAC damps its factors (Martens and Grosse 2015,
  arXiv:1503.05671, section 6.3). 0 is MaTS; large values are gradient matching. In ``benchmarks/merge_quality`` the
  default is better than gradient matching where tasks differ, and no worse than MaTS; where all want nearly the same it
  is far better than MaTS, level with gradient matching for four adapters and behind it for more.
- Deviations from the paper: the output side is damped unless told otherwise; Grams are scaled to mean diagonal 1 and
  weighted as :mod:`vlora.curvature` gathers them; the solver stops when the objective no longer falls instead of after
  a number of steps found on validation rows.

Cost: a few matrices of m x n, and T (m^2 n + m n^2) multiply-adds in float32 per step; no mn x mn matrix. The start is
the closed form; still it is the slowest method here. The result has full rank and is truncated in the metric of the
total Grams.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.kronecker.closed_form import kronecker_merge, metric_root
from vlora.merge.kronecker.system import solve_kronecker_sum
from vlora.merge.low_rank.algebra import resolve_rank, truncate
from vlora.merge.low_rank.recompress import pooled_precision
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["DEFAULT_DAMPING", "mats", "mats_dense", "output_side"]

DEFAULT_DAMPING = 10.0
"""d if none is given."""


def mats(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    scale: float = 1.0,
    tau: float = 0.3,
    steps: int = 100,
    damping: float = DEFAULT_DAMPING,
) -> MergedModule:
    """MaTS merge of the updates of one module.

    Args:
        updates: Updates with ``input_gram`` and ``output_gram``.
        weights: w_t > 0.
        rank: ``auto``, ``keep``, a number, or a share of energy in (0, 1); at the full rank min(m, n) nothing is lost.
        scale: Factor on the result.
        tau: lambda, the prior precision relative to the mean curvature, > 0.
        steps: Upper limit of conjugate gradient steps.
        damping: d >= 0 of the output side, relative to its mean curvature.

    Returns:
        The merged update; its report has ``steps`` and ``residual``, relative to the right-hand side.

    Raises:
        ConfigError: A weight is negative.
        IncompatibleAdaptersError: A Gram is missing, does not fit, or ``rank`` is lossless for several adapters.
    """
    updates, weights = _one_order(*present(updates, weights))
    wanted = resolve_rank(updates, rank, exact=len(updates) == 1)
    if min(weights) < 0:
        raise ConfigError(
            f"MaTS takes positive weights, got {min(weights):g}; to subtract an adapter use method: gradient_matching"
        )
    if wanted is None and len(updates) > 1:
        raise IncompatibleAdaptersError(
            f"a MaTS merge has full rank ({updates[0].module}); set rank to a number or a share of energy"
        )
    left = [output_side(_gram(u, "output_gram"), damping) for u in updates]
    right = [_gram(u, "input_gram") for u in updates]
    start = kronecker_merge(updates, weights, tau)[0].delta()
    dense, taken, residual = mats_dense(
        [u.delta() for u in updates], left, right, weights, tau, steps=steps, start=start
    )
    b, a, retained = _factors(dense, updates, weights, tau, wanted)
    merged = LoraUpdate(scale * b, a, adapter="merged", module=updates[0].module)
    report = {
        "curvature": "mats",
        "clamped_fraction": 0.0,
        "exact": retained > 1 - 1e-12,
        "retained_energy": retained,
    }
    return MergedModule(
        pooled_precision(merged, updates, weights), {**report, "steps": taken, "residual": residual}
    )


def mats_dense(
    deltas: Sequence[Tensor],
    left: Sequence[Tensor],
    right: Sequence[Tensor],
    weights: Sequence[float],
    ridge: float,
    *,
    steps: int = 100,
    start: Tensor | None = None,
) -> tuple[Tensor, int, float]:
    """MaTS on plain updates of shape ``(m, n)``, with S_t ``(m, m)`` and G_t ``(n, n)`` used as they are.

    Returns:
        The merged update, the steps taken, and the residual relative to the right-hand side.
    """
    target = torch.zeros_like(deltas[0])
    for weight, s, g, delta in zip(weights, left, right, deltas, strict=True):
        target = target + weight * (s @ delta @ g + ridge * delta)
    first = torch.zeros_like(target) if start is None else start
    return solve_kronecker_sum(left, right, weights, ridge, target, first, steps)


def output_side(gram: Tensor, damping: float) -> Tensor:
    """(S + d I) / (1 + d) of a Gram with mean diagonal 1."""
    return (gram + damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)) / (1 + damping)


def _one_order(
    updates: Sequence[LoraUpdate], weights: Sequence[float]
) -> tuple[list[LoraUpdate], list[float]]:
    """An order that does not depend on the caller's, as sums in single precision would."""
    pairs = sorted(
        zip(updates, weights, strict=True),
        key=lambda pair: (pair[1], pair[0].b.sum().item(), pair[0].a.sum().item(), pair[0].scale),
    )
    return [u for u, _ in pairs], [w for _, w in pairs]


def _factors(
    dense: Tensor,
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    tau: float,
    rank: int | float | None,
) -> tuple[Tensor, Tensor, float]:
    """Factors at the wanted rank, best in the metric of the total Grams; one adapter keeps its rank."""
    m, n = dense.shape
    identity = torch.eye(min(m, n), dtype=dense.dtype, device=dense.device)
    b, a = (dense, identity) if n <= m else (identity, dense)
    if rank == len(identity):
        return b, a, 1.0
    left = metric_root([u.output_gram for u in updates], weights, tau)
    right = metric_root([u.input_gram for u in updates], weights, tau)
    return truncate(b, a, updates[0].rank if rank is None else rank, left, right)


def _gram(update: LoraUpdate, name: str) -> Tensor:
    gram, where = getattr(update, name), f"{update.adapter!r} in {update.module}"
    size = update.b.shape[0] if name == "output_gram" else update.a.shape[1]
    if gram is None:
        raise IncompatibleAdaptersError(
            f"method: mats needs {name} of every adapter, but {where} has none; gather curvature for it, or use "
            "method: gradient_matching, which does without"
        )
    if gram.shape[0] != size:
        raise IncompatibleAdaptersError(
            f"{name} of {where} has {gram.shape[0]} entries a side, its factors ask for {size}; the file belongs to "
            "another adapter"
        )
    return normalised_gram(gram, where)
