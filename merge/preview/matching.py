"""The preview of gradient matching: every weighting solved in a small basis, per module with input Grams.

The merge X(w) = sum_s w_s W_s (G_s + tau I) C(w)^-1 with C(w) = tau I + sum_s |w_s| G_s is not linear in the weights
(:mod:`vlora.merge.kronecker.closed_form`; a negative weight negates the adapter). Its rows hardly leave a small space,
so they are looked for in one: V spans the rows of every A_s (the solution when s is alone), and of the solutions with
all weights 1, all 1 / P, one of them a quarter, and of some spread weightings where there is room (a reduced basis with
these snapshots; Galerkin: the best approximation in the norm of C(w)). Up to 256 inputs V is everything. There

    X(w) ~ sum_s w_s s_s B_s  a_s (V^T C(w) V)^-1 V^T,      a_s = A_s (G_s + tau I) V

takes K x K matrices, and so do the task's losses; beyond 256 (or 3 sum r) directions the leading ones are kept. Exact
at the snapshots otherwise, and everywhere once K reaches the number of inputs. The rank is taken as lossless: what
``rank`` cuts away is not part of the preview.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.grams import Gram
from vlora.merge.curvature.quadratic import metric_of
from vlora.merge.curvature.total import total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.update import LoraUpdate

__all__ = ["MatchingCore", "full_losses", "matching_core"]

_LARGEST, _LOW, _MORE = 256, 0.25, 8
_NULL = 1e-9  # directions of the snapshots below this share of the largest are rounding


@dataclass(frozen=True)
class MatchingCore:
    """One module in its small basis; P adapters present, R the sum of their ranks."""

    adapters: list[int]
    """Number of each adapter that has the module."""
    owner: Tensor
    """Which of them a row of the stacked factors belongs to. Shape ``(R,)``."""
    grams: Tensor
    """V^T G_s V. Shape ``(P, K, K)``."""
    damped: Tensor
    """a_s, stacked. Shape ``(R, K)``."""
    plain: Tensor
    """A_s V, stacked: where the losses have their minima. Shape ``(R, K)``."""
    outputs: Tensor
    """c_t B^T S_t B / 2 of the stacked s B. Shape ``(P, R, R)``."""
    left: Tensor
    """B^T B / 2 of the stacked s B. Shape ``(R, R)``."""
    tau: float

    def solved(self, coefficients: Tensor) -> Tensor:
        """a_s C(w)^-1, stacked: rows of the merge before they are weighted. Shape ``(k, R, K)``."""
        total = torch.tensordot(coefficients.abs(), self.grams, 1)
        total.diagonal(dim1=-2, dim2=-1).add_(self.tau)
        root = torch.linalg.cholesky(total)
        return torch.cholesky_solve(self.damped.mT.expand(len(total), -1, -1), root).mT


def matching_core(
    updates: Sequence[LoraUpdate],
    adapters: Sequence[int],
    absolute: Sequence[bool],
    tau: float,
    further: Sequence[Sequence[float]] = (),
) -> MatchingCore:
    """Project a module to its small basis.

    Args:
        updates: The updates that are present, each with an input Gram.
        adapters: Their numbers.
        absolute: Whether the loss of each is scaled by h, see :func:`vlora.merge.curvature.quadratic.metric_of`.
        tau: Prior precision of the merge.
        further: Weights >= 0 per adapter at which the basis is exact too.
    """
    given, factors, damped, rows = _damped(updates, tau)
    count = len(updates)
    mixes = [[1.0] * count, [1.0 / count] * count]
    mixes += [[_LOW if i == t else 1.0 for i in range(count)] for t in range(count)] if count > 1 else []
    mixes += [list(mix) for mix in further]
    mixes += _spread(count, max(0, min(_MORE, _LARGEST // len(rows) - 1 - len(mixes))))
    basis = torch.eye(rows.shape[1], dtype=rows.dtype)
    if len(basis) > _LARGEST:
        snapshots = [_snapshot(damped, given, factors, tau, mix) for mix in mixes]
        basis = _basis([rows, *snapshots], max(_LARGEST, 3 * len(rows)))
    outputs, left = _outputs(updates, absolute, factors)
    return MatchingCore(
        list(adapters),
        _owner(updates),
        torch.stack([f * (basis.mT @ g) @ basis for g, f in zip(given, factors, strict=True)]),
        damped @ basis,
        rows @ basis,
        outputs,
        left,
        tau,
    )


def full_losses(
    updates: Sequence[LoraUpdate],
    absolute: Sequence[bool],
    coefficients: Tensor,
    tau: float,
    scale: float,
) -> Tensor:
    """Loss increase of every adapter that is present, with no basis: the solution of the merge itself.

    Args:
        updates: As for :func:`matching_core`.
        absolute: As there.
        coefficients: Weight per adapter. Shape ``(k, P)``.
        tau: Prior precision of the merge.
        scale: Factor on the merge.

    Returns:
        Shape ``(k, P)``; lower is better.
    """
    given, factors, damped, rows = _damped(updates, tau)
    outputs, _ = _outputs(updates, absolute, factors)
    owner = _owner(updates)
    losses = []
    for weights in coefficients:
        total, _ = total_curvature(given, factors, weights.abs().tolist(), tau)
        merged = scale * weights[owner].unsqueeze(-1) * total.solve(damped)
        gaps = [merged - (owner == t).unsqueeze(-1) * rows for t in range(len(updates))]
        seen = [f * (gap @ gram) @ gap.mT for gap, gram, f in zip(gaps, given, factors, strict=True)]
        losses.append(torch.stack([(s * o).sum() for s, o in zip(seen, outputs, strict=True)]))
    return torch.stack(losses)


def _damped(updates: Sequence[LoraUpdate], tau: float) -> tuple[list[Gram], list[float], Tensor, Tensor]:
    """Input Grams, what makes their mean diagonal 1, the stacked A_s (G_s + tau I), and the stacked A_s."""
    given = [u.input_gram for u in updates if u.input_gram is not None]
    places = [f"{u.adapter!r} in {u.module}" for u in updates]
    factors = [unit_factor(gram, place) for gram, place in zip(given, places, strict=True)]
    damped = torch.cat([f * (u.a @ g) + tau * u.a for u, g, f in zip(updates, given, factors, strict=True)])
    return given, factors, damped, torch.cat([u.a for u in updates])


def _outputs(
    updates: Sequence[LoraUpdate], absolute: Sequence[bool], factors: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """``outputs`` and ``left`` of the core."""
    b, found = torch.cat([u.scale * u.b for u in updates], dim=1), []
    for update, own, factor in zip(updates, absolute, factors, strict=True):
        metric = metric_of(update, own)
        scale = metric.scale / factor  # the grams here are unit ones already
        found.append(0.5 * scale * b.mT @ metric.from_outputs(b))
    return torch.stack(found), 0.5 * b.mT @ b


def _owner(updates: Sequence[LoraUpdate]) -> Tensor:
    return torch.cat([torch.full((u.rank,), i) for i, u in enumerate(updates)])


def _snapshot(
    damped: Tensor, grams: Sequence[Gram], factors: Sequence[float], tau: float, weights: Sequence[float]
) -> Tensor:
    """Rows of the merge at some weights > 0."""
    return total_curvature(grams, factors, weights, tau)[0].solve(damped)


def _spread(adapters: int, count: int) -> list[list[float]]:
    """Weightings between 0 and 1.5, denser near 0."""
    sobol = torch.quasirandom.SobolEngine(adapters, scramble=True, seed=0)
    return (1.5 * sobol.draw(count, dtype=torch.float64).square()).tolist() if count else []


def _basis(rows: Sequence[Tensor], largest: int) -> Tensor:
    """Orthonormal columns that span all rows, or the leading ``largest`` of them. Shape ``(n, K)``."""
    scaled = torch.cat([block / block.norm().clamp_min(1e-300) for block in rows])
    _, values, vh = torch.linalg.svd(scaled, full_matrices=False)
    return vh[values > _NULL * values[:1]][:largest].mT
