"""Task arithmetic: the scaled sum of the updates (Ilharco et al. 2023, arXiv:2212.04089).

    DeltaW = scale * sum_t w_t s_t B_t A_t

Weights are used as given. The sum is over updates, never over factors: (sum B)(sum A) has cross terms that mean
nothing. Lossless by concatenation along the rank; at a lower rank by the SVD of the sum, found in its core.
"""

from collections.abc import Sequence
from dataclasses import replace

from vlora.merge.low_rank.algebra import concatenate, resolve_rank
from vlora.merge.low_rank.recompress import recompress
from vlora.merge.update import LoraUpdate, MergedModule, present, shared_a

__all__ = ["task_arithmetic", "weighted_sum"]


def task_arithmetic(
    updates: Sequence[LoraUpdate], weights: Sequence[float], *, rank: str | float = "keep", scale: float = 1.0
) -> MergedModule:
    """Scaled weighted sum of the updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign, not 0.
        rank: ``auto``, ``keep``, ``lossless``, a number, or a share of energy in (0, 1).
        scale: Factor on the whole sum.

    Returns:
        The merged update; exact where the rank allows.
    """
    return weighted_sum(updates, [scale * w for w in weights], rank)


def weighted_sum(
    updates: Sequence[LoraUpdate], coefficients: Sequence[float], rank: str | float
) -> MergedModule:
    """sum_t c_t s_t B_t A_t at a rank; a common A is kept, since the sum is then linear in B.

    Precisions: of a concatenation or a common A, those of the same sum of independent draws; after a truncation,
    those of the pooled data (:func:`vlora.merge.low_rank.recompress.pooled_precision`, every input counted once).
    """
    updates, coefficients = present(updates, coefficients)
    wanted = resolve_rank(updates, rank)
    if shared_a(updates) and all(u.precision_a is None for u in updates):
        merged = _sum_in_b(updates, coefficients)
        done = recompress(merged, updates, [1.0] * len(updates), wanted)
    else:
        done = recompress(concatenate(updates, coefficients), updates, [1.0] * len(updates), wanted)
    return MergedModule(done.update, {"curvature": "none", "clamped_fraction": 0.0, **done.report})


def _sum_in_b(updates: Sequence[LoraUpdate], coefficients: Sequence[float]) -> LoraUpdate:
    """Sum for a common, deterministic A: B' = sum c_t B_t in one scaling; variances of independent draws add."""
    scales = {u.scale for u in updates}
    scale = scales.pop() if len(scales) == 1 else 1.0
    same = [u.with_scale(scale) for u in updates]
    pairs = list(zip(coefficients, same, strict=True))
    b = sum((c * u.b for c, u in pairs[1:]), pairs[0][0] * same[0].b)
    precisions = [u.precision_b for u in same]
    precision_b, prior_b = None, 0.0
    if all(p is not None for p in precisions):
        precision_b = 1.0 / sum(
            c * c / p for c, p in zip(coefficients, precisions, strict=True) if p is not None
        )
        if all(u.prior_b > 0 for u in same):
            prior_b = 1.0 / sum(c * c / u.prior_b for c, u in pairs)
    first = replace(same[0], input_gram=None, output_gram=None, activation_gram=None, adapter="merged")
    return replace(first, b=b, precision_b=precision_b, prior_b=prior_b)
