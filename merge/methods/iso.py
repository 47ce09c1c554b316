"""Iso-C: the sum of the updates with all singular values made equal (Marczak et al. 2025, arXiv:2502.04959).

    sum_t w_t W_t = U diag(sigma) V^T,      DeltaW = scale * mean(sigma) U V^T

Notation (paper -> code): alpha -> ``scale``. Deviation for low-rank updates: the paper's mean and U V^T run over all
min(m, n) directions, of which a sum of adapters fills R = sum r_t; the rest would be arbitrary. Here both run over
the directions that are kept: all of the sum's, or its leading ``rank``. A single adapter does not come back as it was:
its singular values become equal too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.low_rank.algebra import concatenate, kept_components, resolve_rank, thin_svd
from vlora.merge.low_rank.recompress import from_factors
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["iso_c", "isotropic"]

_NULL = 1e-10  # singular values below this share of the largest are rounding


def iso_c(
    updates: Sequence[LoraUpdate], weights: Sequence[float], *, rank: str | float = "keep", scale: float = 1.0
) -> MergedModule:
    """Isotropic merge of the updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign.
        rank: ``auto``, ``keep``, ``lossless`` (all directions of the sum), a number, or a share of the sum's energy.
        scale: Factor on the result.

    Returns:
        The merged update; ``retained_energy`` is that of the sum in the directions that are kept.
    """
    updates, weights = present(updates, weights)
    wanted = resolve_rank(updates, rank)
    total = concatenate(updates, weights)
    u, values, vh = thin_svd(total.b, total.a)
    keep = int((values > _NULL * values[:1]).sum())
    if wanted is not None:
        keep = min(keep, kept_components(values, wanted))
    energy = values.square()
    whole = energy.sum().item()
    retained = energy[:keep].sum().item() / whole if whole > 0 else 1.0
    equal = isotropic(values[:keep])
    b, a = u[:, :keep] * (scale * equal), vh[:keep]
    return from_factors(b, a, updates, None, {}, retained)


def isotropic(values: Tensor) -> Tensor:
    """All singular values replaced by their mean, which keeps the nuclear norm; shape ``(k,)``."""
    return torch.full_like(values, values.mean().item()) if values.numel() else values
