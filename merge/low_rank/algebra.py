"""Factored low-rank algebra: sums, norms and truncation of B A without ever forming an m x n matrix.

Cost O((m + n) R^2) for R the sum of the ranks; the singular values come from an R x R core.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram
from vlora.merge.curvature.summed import SummedMetric
from vlora.merge.curvature.total import Total
from vlora.merge.update import LoraUpdate

__all__ = [
    "concatenate",
    "cosine",
    "inner_product",
    "kept_components",
    "relative_difference",
    "relative_distance",
    "resolve_rank",
    "thin_svd",
    "truncate",
    "truncate_dense",
    "truncate_in_metric",
]

_EXACT_SIZE = 512  # dense matrices with a smaller side than this get a full SVD
_OVERSAMPLING, _POWER_STEPS = 16, 6
_PROBES = 4
Metric = Tensor | Total | SummedMetric
"""A positive definite matrix; only its product with rows is needed."""


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
    b: Tensor, a: Tensor, rank: int | float, left: Tensor | None = None, right: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """Best rank-``rank`` approximation of B A in the norm tr(S E G E^T), S = L L^T, G = R R^T.

        SVD of L^T (B A) R through QR of both factors and an R x R core (Eckart-Young is exact here).

    Args:
        b: Shape ``(m, R)``.
        a: Shape ``(R, n)``.
        rank: Wanted rank, fewer come back when the product cannot have as many; or a share of the squared norm.
        left: L, lower triangular, shape ``(m, m)``, or the diagonal of one, shape ``(m,)``; None is the identity.
        right: R, lower triangular, shape ``(n, n)``, or the diagonal of one, shape ``(n,)``; None is the identity.

    Returns:
        ``(b, a, retained)``: factors that share the singular values evenly, and the share of the squared
        norm they keep (1 is lossless).
    """
    scaled_b = b if left is None else left[:, None] * b if left.ndim == 1 else left.mT @ b
    scaled_a = a if right is None else a * right if right.ndim == 1 else a @ right
    u, values, vh = thin_svd(scaled_b, scaled_a)
    new_b, new_a, retained = _halved(u, values, vh, rank, values.square().sum().item())
    if left is not None:
        new_b = (
            new_b / left[:, None]
            if left.ndim == 1
            else torch.linalg.solve_triangular(left.mT, new_b, upper=True)
        )
    if right is not None:
        diagonal = right.ndim == 1
        new_a = (
            new_a / right
            if diagonal
            else torch.linalg.solve_triangular(right, new_a, upper=False, left=False)
        )
    return new_b, new_a, retained


def truncate_in_metric(
    b: Tensor,
    a: Tensor,
    rank: int | float,
    output_metric: Metric | None = None,
    input_metric: Metric | None = None,
) -> tuple[Tensor, Tensor, float]:
    """As :func:`truncate`, from the metrics S and G themselves instead of their Cholesky factors.

        B = Q_B R_B,  Q_B^T S Q_B = C_B C_B^T, and so for A^T and G;  SVD of C_B^T R_B R_A^T C_A

    Only R x R matrices are factorised, where a Cholesky factor of S costs m^3 / 3 operations.

    Args:
        b: Shape ``(m, R)``.
        a: Shape ``(R, n)``.
        rank: As for :func:`truncate`.
        output_metric: S, positive definite, of size m; None is the identity.
        input_metric: G, positive definite, of size n; None is the identity.

    Returns:
        ``(b, a, retained)`` as :func:`truncate`.
    """
    q_b, core_b, root_b = _thin_root(b, output_metric)
    q_a, core_a, root_a = _thin_root(a.mT, input_metric)
    u, values, vh = torch.linalg.svd(core_b @ core_a.mT, full_matrices=False)
    new_b, new_a, retained = _halved(u, values, vh, rank, values.square().sum().item())
    if root_b is not None:
        new_b = torch.linalg.solve_triangular(root_b.mT, new_b, upper=True)
    if root_a is not None:
        new_a = torch.linalg.solve_triangular(root_a, new_a, upper=False, left=False)
    return q_b @ new_b, new_a @ q_a.mT, retained


def _thin_root(tall: Tensor, metric: Metric | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Q, C^T R and C of a tall matrix Q R, with C C^T = Q^T M Q."""
    q, r = torch.linalg.qr(tall)
    if metric is None:
        return q, r, None
    small = (q.mT @ metric) @ q
    root = torch.linalg.cholesky(0.5 * (small + small.mT))
    return q, root.mT @ r, root


def thin_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD ``(u, values, vh)`` of B A, from QR of both factors and a core of the size of their rank."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.mT)
    u, values, vh = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    return q_b @ u, values, vh @ q_a.mT


def truncate_dense(matrix: Tensor, rank: int | float) -> tuple[Tensor, Tensor, float]:
    """Best low-rank factors of a dense matrix, as :func:`truncate` gives them for a product.

    Beyond 512 on the smaller side the leading part comes from a randomised subspace iteration with a fixed seed
    (Halko, Martinsson and Tropp 2011, arXiv:0909.4061), whose ``retained`` is what it really kept; a share of energy
    needs all singular values and takes the full SVD at any size.

    Args:
        matrix: Shape ``(m, n)``.
        rank: Wanted rank, or the share of the squared norm to retain.

    Returns:
        ``(b, a, retained)``.
    """
    total = matrix.square().sum().item()
    if isinstance(rank, float) or min(matrix.shape) <= max(_EXACT_SIZE, rank + _OVERSAMPLING):
        u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, values, vh = _leading_svd(matrix, rank + _OVERSAMPLING)
    return _halved(u, values, vh, rank, total)


def kept_components(values: Tensor, rank: int | float) -> int:
    """How many leading singular values stay: ``rank`` of them, or enough for a share of the squared norm."""
    if not isinstance(rank, float):
        return min(rank, values.numel())
    shares = values.square().cumsum(0)
    # The last share is the total itself, so that rounding cannot ask for more than there is.
    return int((shares < rank * shares[-1]).sum()) + 1 if values.numel() else 0


def inner_product(first: LoraUpdate, second: LoraUpdate, gram: Gram | None = None) -> float:
    """tr(W_1 G W_2^T) of two updates, from r x r matrices. ``gram`` has shape ``(n, n)``; None is the identity."""
    weighted = first.a if gram is None else first.a @ gram
    core = (first.b.mT @ second.b) * (weighted @ second.a.mT)
    return first.scale * second.scale * core.sum().item()


def cosine(first: LoraUpdate, second: LoraUpdate) -> float:
    """Cosine of two updates as vectors; 0 is orthogonal, negative pulls in opposite directions."""
    norm = (inner_product(first, first) * inner_product(second, second)) ** 0.5
    return inner_product(first, second) / norm if norm > 0 else 0.0


def relative_distance(merged: LoraUpdate, update: LoraUpdate, gram: Gram | None = None) -> float:
    """|X - W|_G^2 / |W|_G^2: 0 if the merge keeps this update, 1 if it is as lost as without an adapter."""
    own = inner_product(update, update, gram)
    if own <= 0:
        return 0.0
    both = inner_product(merged, merged, gram) - 2 * inner_product(merged, update, gram)
    return max(0.0, (both + own) / own)


def relative_difference(first: LoraUpdate, second: LoraUpdate | Callable[[Tensor], Tensor]) -> float:
    """|X V - Y V| / |Y V| on a few fixed random vectors V; 0 is equal. Exact to rounding, without an m x n matrix.

    Args:
        first: X.
        second: Y, or the map V -> Y V on tensors of shape ``(n, k)``.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(first.a.shape[1], _PROBES, generator=generator, dtype=first.a.dtype).to(
        first.a.device
    )
    ours, theirs = _apply(first, vectors), _apply(second, vectors)
    size = theirs.norm().item()
    difference = (ours - theirs).norm().item()
    return difference / size if size > 0 else difference


def resolve_rank(updates: Sequence[LoraUpdate], rank: str | float, exact: bool = True) -> int | float | None:
    """Rank of the merged module: a number, a share of energy in (0, 1), or None for lossless.

    Args:
        updates: Updates of one module.
        rank: ``auto``, ``keep``, ``lossless``, a number or a share.
        exact: Whether the merge has factors of rank sum r or less, so that ``auto`` need not cut it; else ``auto`` is
            the largest rank of the inputs.

    Raises:
        IncompatibleAdaptersError: ``keep`` with inputs of different ranks.
    """
    if rank == "lossless" or (rank == "auto" and exact):
        return None
    if rank == "auto":
        return max(update.rank for update in updates)
    if not isinstance(rank, str):
        return rank
    for other in updates[1:]:
        if other.rank != updates[0].rank:
            raise IncompatibleAdaptersError(
                f"rank: keep needs equal ranks, but {updates[0].adapter!r} has r={updates[0].rank} and "
                f"{other.adapter!r} has r={other.rank} on {updates[0].module}; "
                "set rank to a number or to lossless"
            )
    return updates[0].rank


def _halved(
    u: Tensor, values: Tensor, vh: Tensor, rank: int | float, total: float
) -> tuple[Tensor, Tensor, float]:
    """Leading components, singular values shared evenly by both factors, and their share of ``total``."""
    keep = kept_components(values, rank)
    root = values[:keep].sqrt()
    retained = min(1.0, values[:keep].square().sum().item() / total) if total > 0 else 1.0
    return u[:, :keep] * root, root[:, None] * vh[:keep], retained


def _leading_svd(matrix: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], size, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start.to(matrix.device))[0]
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis)[0])[0]
    u, values, vh = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return basis @ u, values, vh


def _apply(update: LoraUpdate | Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    if isinstance(update, LoraUpdate):
        return update.scale * (update.b @ (update.a @ vectors))
    return update(vectors)


def _over(tensor: Tensor | None, divisor: float) -> Tensor | None:
    return None if tensor is None else tensor / divisor


def _stack(blocks: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [block for block in blocks if block is not None]
    return torch.cat(present, dim=dim) if len(present) == len(blocks) else None
