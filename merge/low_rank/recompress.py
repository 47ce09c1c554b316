"""From a lossless merge to the wanted rank, with the posterior that belongs to the new factors."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlora.merge.curvature.lift import lift_update, pull_back
from vlora.merge.low_rank.algebra import Metric, truncate, truncate_in_metric
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["from_factors", "pooled_precision", "recompress"]


def recompress(
    full: LoraUpdate,
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    rank: int | float | None,
    *,
    left: Tensor | None = None,
    right: Tensor | None = None,
    metrics: tuple[Metric | None, Metric | None] | None = None,
) -> MergedModule:
    """Truncate a lossless merge to a rank; at or below that rank it is returned as it is.

    Args:
        full: The merge, exact, of rank sum r_t.
        updates: The inputs; their h gives the posterior of the new factors.
        weights: w_t per input, with which its evidence is counted.
        rank: Wanted rank, or share of energy in (0, 1); None keeps everything.
        left: Cholesky factor of the output metric, see :func:`vlora.merge.low_rank.algebra.truncate`.
        right: Cholesky factor of the input metric.
        metrics: Output and input metric themselves, instead of ``left`` and ``right``.

    Returns:
        The update and ``exact``, ``retained_energy`` in its report.
    """
    if rank is None or (isinstance(rank, int) and full.rank <= rank):
        return MergedModule(full, {"exact": True, "retained_energy": 1.0})
    if metrics is None:
        b, a, retained = truncate(full.b, full.a, rank, left, right)
    else:
        b, a, retained = truncate_in_metric(full.b, full.a, rank, *metrics)
    update = pooled_precision(
        replace(full, b=b * full.scale, a=a, scale=1.0, precision_b=None, precision_a=None), updates, weights
    )
    return MergedModule(update, {"exact": retained > 1 - 1e-12, "retained_energy": retained})


def from_factors(
    b: Tensor,
    a: Tensor,
    updates: Sequence[LoraUpdate],
    rank: int | float | None,
    report: Mapping[str, Any],
    retained: float = 1.0,
) -> MergedModule:
    """A merged module from new factors, scaling included, that are no plain sum of the inputs' own.

    Args:
        b: Shape ``(m, R)``.
        a: Shape ``(R, n)``.
        updates: The inputs; the posterior is that of their pooled data, every input counted once.
        rank: As for :func:`recompress`.
        report: What else is to be said of the module.
        retained: Share of energy that the factors already hold.
    """
    if a.shape[0] == 0:  # a merge of nothing but zeros; PEFT has no rank 0
        b, a = b.new_zeros(b.shape[0], 1), a.new_zeros(1, a.shape[1])
    full = LoraUpdate(b, a, adapter="merged", module=updates[0].module)
    done = recompress(full, updates, [1.0] * len(updates), rank)
    kept = retained * done.report["retained_energy"]
    merged = pooled_precision(done.update, updates, [1.0] * len(updates))
    told = {"exact": kept > 1 - 1e-12, "retained_energy": kept}
    return MergedModule(merged, {"curvature": "none", "clamped_fraction": 0.0, **told, **report})


def pooled_precision(
    merged: LoraUpdate, updates: Sequence[LoraUpdate], weights: Sequence[float]
) -> LoraUpdate:
    """Posterior of new factors: the inputs' curvatures, lifted to W, added, and pulled back.

    This is the diagonal Laplace posterior of the pooled data at the merged mean, with the separable curvature
    of each input. Adapters without h make the result deterministic; negative weights add no certainty.
    """
    curvatures = [lift_update(u) for u in updates]
    known = [c for c in curvatures if c is not None]
    if len(known) < len(curvatures):
        return merged
    counted = [max(0.0, w) for w in weights]
    total = sum(abs(w) for w in weights)
    priors = [max(u.prior_b, u.prior_a) for u in updates]
    prior = sum(abs(w) / total * p for w, p in zip(weights, priors, strict=True))
    curvature_b, curvature_a = pull_back(merged.b, merged.a, merged.scale, known, counted)
    return replace(
        merged, precision_b=curvature_b + prior, precision_a=curvature_a + prior, prior_b=prior, prior_a=prior
    )
