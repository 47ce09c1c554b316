"""Factored low-rank algebra: sums, norms and truncation of B A without ever forming an m x n matrix.

Cost O((m + n) R^2) for R the sum of the ranks; the singular values come from an R x R core.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.update import LoraUpdate

__all__ = ["concatenate", "cosine", "inner_product", "relative_distance", "resolve_rank", "truncate"]


def concatenate(updates: Sequence[LoraUpdate], coefficients: Sequence[float]) -> LoraUpdate:
    """Exact factors of sum_t c_t s_t B_t A_t: stack along the rank, coefficients folded into B.

    The posterior is carried over: a draw of the result is the same weighted sum of independent draws of the
    inputs. B' = c B has precision P / c^2; A is unchanged. Factors are stochastic only if they are in all inputs.

    Args:
        updates: Updates of one module.
        coefficients: c_t, one per update, none of them 0.

    Returns:
        An update of rank sum r_t with scale 1. Where priors differ between blocks, the smallest is kept as
        the prior and the rest stays in the precision, so that the total is exact.
    """
    blocks = [u.with_scale(1.0) for u in updates]
    b = torch.cat([c * u.b for c, u in zip(coefficients, blocks, strict=True)], dim=1)
    a = torch.cat([u.a for u in blocks], dim=0)
    precision_b = _stack(
        [_over(u.precision_b, c * c) for u, c in zip(blocks, coefficients, strict=True)], dim=1
    )
    precision_a = _stack([u.precision_a for u in blocks], dim=0)
    return LoraUpdate(
        b,
        a,
        1.0,
        precision_b,
        precision_a,
        min(u.prior_b / c**2 for u, c in zip(blocks, coefficients, strict=True)),
        min(u.prior_a for u in blocks),
        adapter="merged",
        module=updates[0].module,
    )


def truncate(
    b: Tensor, a: Tensor, rank: int, left: Tensor | None = None, right: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Best rank-``rank`` approximation of B A in the norm tr(S E G E^T), S = L L^T, G = R R^T.

        SVD of L^T (B A) R through QR of both factors and an R x R core (Eckart-Young is exact here).

    Args:
        b: Shape ``(m, R)``.
        a: Shape ``(R, n)``.
        rank: Wanted rank; fewer come back when the product cannot have as many.
        left: L, lower triangular, shape ``(m, m)``; None is the identity.
        right: R, lower triangular, shape ``(n, n)``; None is the identity.

    Returns:
        ``(b, a, retained)``: factors that share the singular values evenly, and the share of the squared
        norm they keep (1 is lossless).
    """
    scaled_b = b if left is None else left.mT @ b
    scaled_a = a if right is None else a @ right
    q_b, r_b = torch.linalg.qr(scaled_b)
    q_a, r_a = torch.linalg.qr(scaled_a.mT)
    u, values, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    keep = min(rank, values.numel())
    energy = values.square()
    total = energy.sum().item()
    retained = 1.0 if total == 0 else (energy[:keep].sum() / total).item()
    root = values[:keep].sqrt()
    new_b, new_a = q_b @ (u[:, :keep] * root), (root[:, None] * vh[:keep]) @ q_a.mT
    if left is not None:
        new_b = torch.linalg.solve_triangular(left.mT, new_b, upper=True)
    if right is not None:
        new_a = torch.linalg.solve_triangular(right, new_a, upper=False, left=False)
    return new_b, new_a, retained


def inner_product(first: LoraUpdate, second: LoraUpdate, gram: Tensor | None = None) -> float:
    """tr(W_1 G W_2^T) of two updates, from r x r matrices. ``gram`` has shape ``(n, n)``; None is the identity."""
    weighted = first.a if gram is None else first.a @ gram
    core = (first.b.mT @ second.b) * (weighted @ second.a.mT)
    return first.scale * second.scale * core.sum().item()


def cosine(first: LoraUpdate, second: LoraUpdate) -> float:
    """Cosine of two updates as vectors; 0 is orthogonal, negative pulls in opposite directions."""
    norm = (inner_product(first, first) * inner_product(second, second)) ** 0.5
    return inner_product(first, second) / norm if norm > 0 else 0.0


def relative_distance(merged: LoraUpdate, update: LoraUpdate, gram: Tensor | None = None) -> float:
    """|X - W|_G^2 / |W|_G^2: 0 if the merge keeps this update, 1 if it is as lost as without an adapter."""
    own = inner_product(update, update, gram)
    if own <= 0:
        return 0.0
    both = inner_product(merged, merged, gram) - 2 * inner_product(merged, update, gram)
    return max(0.0, (both + own) / own)


def resolve_rank(updates: Sequence[LoraUpdate], rank: str | int) -> int | None:
    """Rank of the merged module: a number, or None for lossless.

    Raises:
        IncompatibleAdaptersError: ``keep`` with inputs of different ranks.
    """
    if rank == "lossless":
        return None
    if rank != "keep":
        return int(rank)
    for other in updates[1:]:
        if other.rank != updates[0].rank:
            raise IncompatibleAdaptersError(
                f"rank: keep needs equal ranks, but {updates[0].adapter!r} has r={updates[0].rank} and "
                f"{other.adapter!r} has r={other.rank} on {updates[0].module}; "
                "set rank to a number or to lossless"
            )
    return updates[0].rank


def _over(tensor: Tensor | None, divisor: float) -> Tensor | None:
    return None if tensor is None else tensor / divisor


def _stack(blocks: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [block for block in blocks if block is not None]
    return torch.cat(present, dim=dim) if len(present) == len(blocks) else None
