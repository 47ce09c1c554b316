"""TSV-Merge: task singular vectors made orthogonal between tasks (Gargiulo et al. 2025, arXiv:2412.00081).

    W_t ~ U_t Sigma_t V_t^T              the leading k singular triples of every update
    U = [U_1 ... U_T] = P_U D_U Q_U^T    U_perp = P_U Q_U^T, the nearest orthogonal matrix; V_perp alike
    DeltaW = scale * U_perp diag(Sigma_1 ... Sigma_T) V_perp^T

Notation (paper -> code): alpha -> ``scale``, k -> ``task_rank``. The paper takes k = min(m, n) / T, which is more than
an adapter's rank in most cases, so all of it stays. Weights multiply Sigma_t. Deviation: directions of U with singular
value 0 (two adapters share a vector) are left out of U_perp; they are arbitrary otherwise. Adapters are merged in
factors, and the result of rank sum k_t is exact before the final truncation; whole models
(:mod:`vlora.merge.checkpoints.matrix_rules`) matrix by matrix.

There is no ``space``: singular values, singular vectors and polar factors turn with an orthonormal basis, so the merge
is the same in the coordinates of KnOTS and core space (:mod:`vlora.merge.low_rank.spaces`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlora.merge.low_rank.algebra import resolve_rank, thin_svd
from vlora.merge.low_rank.recompress import from_factors
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["Svd", "nearest_orthogonal", "significant_svd", "triples_per_task", "tsv", "tsv_merge"]

Svd = tuple[Tensor, Tensor, Tensor]
"""``(u, values, vh)`` of shapes ``(m, k)``, ``(k,)`` and ``(k, n)``."""
Decomposition = Callable[[Tensor], Svd]
"""The SVD of a matrix without the directions of singular value 0."""

_NULL = 1e-10  # singular values of U below this share of the largest are rounding


def tsv(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    scale: float = 1.0,
    task_rank: int | None = None,
) -> MergedModule:
    """TSV merge of the updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign.
        rank: ``auto``, ``keep``, ``lossless``, a number, or a share of energy in (0, 1).
        scale: Factor on the result.
        task_rank: Singular triples that each adapter contributes; min(m, n) / T if not given.

    Returns:
        The merged update.
    """
    updates, weights = present(updates, weights)
    wanted = resolve_rank(updates, rank)
    sides = min(updates[0].b.shape[0], updates[0].a.shape[1])
    share = triples_per_task(sides, len(updates)) if task_rank is None else task_rank
    parts = [thin_svd(u.scale * u.b, u.a) for u in updates]
    b, a = tsv_merge([(u[:, :share], s[:share], vh[:share]) for u, s, vh in parts], weights)
    return from_factors(scale * b, a, updates, wanted, {})


def triples_per_task(side: int, tasks: int) -> int:
    """The paper's k: the smaller side of a matrix divided among the tasks, at least 1."""
    return max(1, side // tasks)


def significant_svd(matrix: Tensor) -> Svd:
    """Thin SVD without the directions that are rounding."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    keep = values > _NULL * values[:1]
    return left[:, keep], values[keep], right[keep]


def tsv_merge(
    parts: Sequence[Svd], weights: Sequence[float], decompose: Decomposition = significant_svd
) -> tuple[Tensor, Tensor]:
    """The merge from the leading singular triples of every task, as factors of shapes ``(m, K)`` and ``(K, n)``.

    Args:
        parts: Leading triples of every task.
        weights: w_t, any sign.
        decompose: SVD of the stacked vectors; decides which of them count as one direction.
    """
    left = nearest_orthogonal(torch.cat([u for u, _, _ in parts], dim=1), decompose)
    right = nearest_orthogonal(torch.cat([vh for _, _, vh in parts], dim=0).mT, decompose)
    values = torch.cat([w * s for w, (_, s, _) in zip(weights, parts, strict=True)])
    return left * values, right.mT


def nearest_orthogonal(columns: Tensor, decompose: Decomposition = significant_svd) -> Tensor:
    """P Q^T of the SVD P D Q^T, over the directions with D > 0: the polar factor, a partial isometry."""
    left, _, right = decompose(columns)
    return left @ right
