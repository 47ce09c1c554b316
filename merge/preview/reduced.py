r"""Thousands of weightings of gradient matching: a reduced basis of whole merges, per module.

The merge X(w) of a module solves X C(w) = Y(w) with C(w) = tau I + sum_s \|w_s\| G_s and Y(w) = sum_s w_s W_s
(G_s + tau I), both affine in the weights: a parametric system with a positive definite matrix, whose solutions depend
smoothly on w. So it is solved at N weightings only, and in between the merge is looked for among their combinations
X = sum_i c_i F_i (reduced basis method; Hesthaven, Rozza and Stamm 2016, chapter 3). Galerkin's condition, the best
combination in the norm of C(w), is a small system whose parts are made once:

    (tau T + sum_s |w_s| E_s) c = sum_s w_s f_s,     T_ij = <F_i, F_j>,  E_s,ij = <F_i, F_j G_s>,
                                                     f_s,i = <F_i, W_s (G_s + tau I)>
    loss_t(w) = 1/2 |k X - W_t|_t^2 = 1/2 k^2 c^T U_t c - k c^T u_t + v_t        (k: factor on the merge)

A weighting then costs D^3 / 3 + P D^2 operations for D functions and P adapters, whatever the size of the module.
Functions: whole merges at spread weightings, denser near 0 and half of them with some weights 0, and at every adapter
alone; and the P summands of the merge one by one: up to three adapters at all corners of the box, from there on at two
points of its diagonal, with the merge as a whole at all corners (up to five) or where one is left out. Exact at these
weightings; in between the error is measured, not bounded: the preview solves some in full and tells the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vlora.merge.preview.matching import MatchingCore

__all__ = ["Nodes", "ReducedCore", "make_nodes", "reduced_core"]

_CHUNK = 256
_NULL = 1e-9  # functions below this share of the largest are rounding
_SPREAD = 8  # spread weightings per adapter
_CORNERS = 3  # adapters up to which all corners are solved
_WHOLE_CORNERS = 5  # and up to which they are single functions; beyond, all weights but one
_DIAGONAL = (1.0, 0.2)


@dataclass(frozen=True)
class Nodes:
    """Weightings at which the merge is solved, one weight >= 0 per adapter."""

    split: Tensor
    """Each summand is a function of its own. Shape ``(a, P)``."""
    whole: Tensor
    """The merge is one function. Shape ``(b, P)``."""

    def of(self, adapters: Sequence[int]) -> "Nodes":
        """For a module that only some adapters have; weightings that are then equal, or nothing, count once."""
        split, whole = (torch.unique(rows[:, list(adapters)], dim=0) for rows in (self.split, self.whole))
        return Nodes(split[split.any(1)], whole[whole.any(1)])


def make_nodes(count: int, reach: float, further: Sequence[Sequence[float]] = ()) -> Nodes:
    """Choose the weightings.

    Args:
        count: P, number of adapters.
        reach: Largest absolute weight.
        further: Weights at which the preview is to be exact too.
    """
    ones = torch.ones(1, count, dtype=torch.float64)
    if count <= _CORNERS:
        split = reach * _corners(count)
    else:
        split = reach * torch.cat([share * ones for share in _DIAGONAL])
        masked_out = (
            _corners(count) if count <= _WHOLE_CORNERS else 1.0 - torch.eye(count, dtype=torch.float64)
        )
        further = [*further, *(reach * masked_out).tolist()]
    sobol = torch.quasirandom.SobolEngine(2 * count, scramble=True, seed=0)
    drawn = sobol.draw(_SPREAD * count, dtype=torch.float64)
    spread = reach * drawn[:, :count].square()
    masked = drawn[::2, count:].round()
    spread[::2] *= torch.where(masked.any(1, keepdim=True), masked, torch.ones_like(masked))
    given = torch.tensor([list(row) for row in further], dtype=torch.float64).reshape(-1, count).abs()
    return Nodes(split, torch.cat([torch.eye(count, dtype=torch.float64), ones, ones / count, given, spread]))


def _corners(count: int) -> Tensor:
    """All but the one at 0. Shape ``(2^count - 1, count)``."""
    return torch.tensor(list(product((0.0, 1.0), repeat=count))[1:], dtype=torch.float64)


@dataclass(frozen=True)
class ReducedCore:
    """One module in its basis of D functions; P adapters present."""

    adapters: list[int]
    """Number of each adapter that has the module."""
    plain: Tensor
    """tau T. Shape ``(D, D)``."""
    grams: Tensor
    """E_s. Shape ``(P, D, D)``."""
    pulls: Tensor
    """f_s. Shape ``(P, D)``."""
    worth: Tensor
    """1/2 <W_s, W_s (G_s + tau I)>. Shape ``(P,)``."""
    forms: Tensor
    """U_t. Shape ``(P, D, D)``."""
    targets: Tensor
    """u_t. Shape ``(P, D)``."""
    alone: Tensor
    """v_t: loss of each adapter where there is no merge. Shape ``(P,)``."""

    def losses(self, coefficients: Tensor, scale: float) -> Tensor:
        """Loss increase of every adapter that is present.

        Args:
            coefficients: Weight per adapter that is present. Shape ``(k, P)``.
            scale: Factor on the merge.

        Returns:
            Shape ``(k, P)``; lower is better.
        """
        return torch.cat([self._losses(chunk, scale) for chunk in coefficients.split(_CHUNK)])

    def matched(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """What the merge itself minimises, as :meth:`vlora.merge.preview.matching.MatchingCore.matched`."""
        pairs = [self._matched(chunk) for chunk in coefficients.split(_CHUNK)]
        return torch.cat([losses for losses, _ in pairs]), torch.cat([prior for _, prior in pairs])

    def _solved(self, coefficients: Tensor) -> Tensor:
        """C of every weighting. Shape ``(k, D)``."""
        total = self.plain + torch.tensordot(coefficients.abs(), self.grams, 1)
        pulls = (coefficients @ self.pulls).unsqueeze(-1)
        return torch.cholesky_solve(pulls, torch.linalg.cholesky(total)).squeeze(-1)

    def _losses(self, coefficients: Tensor, scale: float) -> Tensor:
        found = scale * self._solved(coefficients)
        return (0.5 * _squares(found, self.forms) - found @ self.targets.mT + self.alone).clamp_min(0)

    def _matched(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        found = self._solved(coefficients)
        prior = 0.5 * _squares(found, self.plain.unsqueeze(0))
        sign = torch.where(coefficients.signbit(), -1.0, 1.0)
        losses = 0.5 * _squares(found, self.grams) + prior - sign * (found @ self.pulls.mT) + self.worth
        return losses.clamp_min(0), prior.squeeze(-1)


def reduced_core(core: MatchingCore, nodes: Nodes) -> ReducedCore:
    """Solve a module at the nodes, and keep what products of these solutions are needed.

    Args:
        core: The module, with all its rows.
        nodes: One weight per adapter that is present.
    """
    own = torch.nn.functional.one_hot(core.owner, len(core.adapters)).to(core.damped.dtype).mT
    solved, shares = _functions(core, nodes, own)
    rows, both = shares * solved, 2.0 * core.left
    minima, damped = own.unsqueeze(-1) * core.plain, own.unsqueeze(-1) * core.damped
    grams, forms, targets, alone = [], [], [], []
    for gram, output, least in zip(core.grams, core.outputs, minima, strict=True):
        pushed, pull = shares * (solved @ gram), 2.0 * output @ (least @ gram)
        grams.append(_inner(both, pushed, rows))
        forms.append(_inner(2.0 * output, pushed, rows))
        targets.append(rows.flatten(1) @ pull.flatten())
        alone.append(0.5 * (pull * least).sum())
    plain, every = core.tau * _inner(both, rows, rows), torch.stack(grams)
    basis = _well_conditioned(plain + every.mean(0))
    pulls = (both @ damped).flatten(1) @ rows.flatten(1).mT
    return ReducedCore(
        core.adapters,
        basis.mT @ plain @ basis,
        basis.mT @ every @ basis,
        pulls @ basis,
        0.5 * ((both @ damped) * minima).sum((1, 2)),
        basis.mT @ torch.stack(forms) @ basis,
        torch.stack(targets) @ basis,
        torch.stack(alone),
    )


def _functions(core: MatchingCore, nodes: Nodes, own: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of every function before they are weighted, shape ``(D, R, K)``, and their weights, ``(D, R, 1)``."""
    points = torch.cat([nodes.split, nodes.whole])
    solved = torch.cat([core.solved(chunk) for chunk in points.split(_CHUNK)])
    count, parts = len(core.adapters), len(nodes.split)
    which = torch.cat([torch.arange(parts).repeat_interleave(count), torch.arange(parts, len(points))])
    shares = torch.cat([own.repeat(parts, 1), nodes.whole @ own])
    return solved[which], shares.unsqueeze(-1)


def _inner(left: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """tr(left F_i F_j^T) for all pairs, symmetric. Shape ``(D, D)``."""
    found = (left @ first).flatten(1) @ second.flatten(1).mT
    return (found + found.mT) / 2


def _well_conditioned(form: Tensor) -> Tensor:
    """Combinations of the functions that are orthonormal in a form; those that rounding would rule are dropped."""
    unit = form.diagonal().clamp_min(torch.finfo(form.dtype).tiny).rsqrt()
    values, vectors = torch.linalg.eigh(unit.unsqueeze(-1) * form * unit)
    kept = values > _NULL * values[-1]
    return unit.unsqueeze(-1) * vectors[:, kept] / values[kept].sqrt()


def _squares(found: Tensor, forms: Tensor) -> Tensor:
    """c^T M c for every weighting and form. Shape ``(k, forms)``."""
    return ((found @ forms) * found).sum(-1).mT
