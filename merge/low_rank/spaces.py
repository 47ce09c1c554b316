"""Coordinates in which an element-wise method (TIES, DARE, DELLA) works.

Entries of an update are only comparable in some basis; the choice changes what such a method does.

========  ====================================================================================================
full      the entries of DeltaW itself, as the papers of the methods; one dense m x n matrix per adapter
knots     V_t of the common SVD [W_1 ... W_T] = U Sigma [V_1 ... V_T]^T, result U Sigma V^T
          (KnOTS: Stoica et al. 2025, arXiv:2410.19735)
core      M_t = U_B^T s_t B_t A_t V_A, with U_B and V_A the left singular basis of [s_1 B_1 ... s_T B_T] and the
          right one of the stacked A_t, result U_B M V_A^T (Core Space: Panariello et al. 2025, arXiv:2509.17786)
========  ====================================================================================================

Both low-rank spaces hold every update exactly, and their result has rank <= R = sum r_t: nothing is lost before the
final truncation, and no m x n matrix is formed. KnOTS costs O((m + T n) R^2); here the SVD runs on factors, while the
released code runs it on dense updates. Core space costs O((m + n) R^2), but its basis depends on how an update is split
into B and A. Singular vectors are unique up to sign, which element-wise methods do not see.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.low_rank.algebra import resolve_rank, truncate_dense
from vlora.merge.low_rank.recompress import from_factors
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["SPACES", "core_coordinates", "knots_coordinates", "merge_in_space"]

SPACES = ("full", "knots", "core")
"""Accepted values of the option ``space``."""

LARGEST_DENSE = 2**28
"""Entries of the largest update that ``full`` forms per adapter (2 GiB in float64)."""

_NOISE = 1e-12  # singular values below this share of the largest are rounding

Rule = Callable[[list[Tensor]], Tensor]
Factors = Callable[[Tensor], tuple[Tensor, Tensor]]


def merge_in_space(updates: Sequence[LoraUpdate], rank: str | float, space: str, rule: Rule) -> MergedModule:
    """Apply a rule on tensors to updates in chosen coordinates and factorise the result again.

    Args:
        updates: Updates of one module, all of rank > 0.
        rank: ``keep``, a number or a share of energy; ``lossless`` only where the space has low rank; ``auto`` is that
            there, else the largest rank of the inputs.
        space: One of :data:`SPACES`.
        rule: Tensors of one shape, one per update, to one tensor of that shape.

    Returns:
        The merged update with ``retained_energy`` and ``space`` in its report, and the pooled posterior.

    Raises:
        ConfigError: No such space.
        IncompatibleAdaptersError: ``lossless`` in the full space, or a module too large for it.
    """
    if space not in SPACES:
        raise ConfigError(f"space must be one of {', '.join(SPACES)}, got {space!r}")
    wanted = resolve_rank(updates, rank, exact=space != "full")
    if space == "full":
        if wanted is None:
            raise IncompatibleAdaptersError(
                f"an element-wise merge of dense updates has no lossless factors ({updates[0].module}); set rank to a "
                "number or a share of energy, or space: knots or core"
            )
        b, a, retained = truncate_dense(rule(_dense(updates)), wanted)
        return from_factors(b, a, updates, None, {"space": space}, retained)
    coordinates, factors = (knots_coordinates if space == "knots" else core_coordinates)(updates)
    b, a = factors(rule(coordinates))
    return from_factors(b, a, updates, wanted, {"space": space})


def knots_coordinates(updates: Sequence[LoraUpdate]) -> tuple[list[Tensor], Factors]:
    """V_t^T per update, shape ``(k, n)``, and the way back to ``(b, a)`` = (U Sigma, V^T)."""
    stacked = torch.cat([u.scale * u.b for u in updates], dim=1)
    basis, root = torch.linalg.qr(stacked)
    blocks = root.split([u.rank for u in updates], dim=1)
    core = torch.cat([block @ u.a for block, u in zip(blocks, updates, strict=True)], dim=1)
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    keep = values > _NOISE * values[:1]
    scaled = basis @ (left[:, keep] * values[keep])
    return list(right[keep].split(updates[0].a.shape[1], dim=1)), lambda merged: (scaled, merged)


def core_coordinates(updates: Sequence[LoraUpdate]) -> tuple[list[Tensor], Factors]:
    """M_t per update, at most ``(R, R)``, and the way back to ``(b, a)`` = (U_B, M V_A^T)."""
    left = _range(torch.cat([u.scale * u.b for u in updates], dim=1))
    right = _range(torch.cat([u.a for u in updates], dim=0).mT)
    cores = [(left.mT @ (u.scale * u.b)) @ (u.a @ right) for u in updates]
    return cores, lambda merged: (left, merged @ right.mT)


def _range(columns: Tensor) -> Tensor:
    """Left singular vectors of a tall matrix, without those of vanishing singular values."""
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left[:, values > _NOISE * values[:1]]


def _dense(updates: Sequence[LoraUpdate]) -> list[Tensor]:
    first = updates[0]
    entries = first.b.shape[0] * first.a.shape[1]
    if entries > LARGEST_DENSE:
        raise IncompatibleAdaptersError(
            f"{first.module} has {entries:,} entries, too many for one dense update per adapter; set space: knots or "
            "core, or leave the module out"
        )
    return [u.delta() for u in updates]
