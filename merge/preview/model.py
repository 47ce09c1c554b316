"""Every task's quadratic loss as a form in the weights of a scaled sum: thousands of weightings for the price of one.

For X(w) = sum_u c_u W_u and task t, D = X - W_t = sum_u (c_u - delta_ut) W_u is linear in the weights, so that

    increase_t(w) = 1/2 <D, D>_t = 1/2 d^T M_t d,      M_t[u, v] = sum over modules <W_u, W_v>_t,      d = c - e_t

costs P^2 multiplications once the P x P matrices M_t are there (P adapters). The posteriors of the adapters make it
uncertain: with dW_s = s (dB A + B dA) and independent entries of variance v = 1 / (ess (h + delta)),

    variance_t = sum_s d_s^2 d^T K_ts d + 1/2 sum_su d_s^2 d_u^2 R_t[s, u]
    K_ts[u, v] = sum_p (J_s^T H_t W_u)_p (J_s^T H_t W_v)_p v_p       (J_s: from the factors of s to its update)
    R_t[s, u]  = sum_pq (J_s^T H_t J_u)_pq^2 v_p v_q

which is the variance of the quadratic form for Gaussian noise, exact for a frozen A and to first order of the product
dB dA otherwise. Modules of gradient matching, whose merge is not linear in the weights, are apart
(:mod:`vlora.merge.preview.reduced`, :mod:`vlora.merge.preview.matching_noise`).

Several adapters of one task, one per seed, share one weight w_g. Either they are averaged (c_u is w_g / K) and the
prediction is the mean over them; or they are components of a mixture posterior (arXiv:2412.08147), the merge is at its
mode, and the prediction is a soft minimum (:mod:`vlora.merge.preview.mixture`). The variance is the mean of the
members' variances plus the variance of their means, weighted by responsibilities in the second case.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.merge.preview.mixture import member_weights, over_members, surrogate
from vlora.merge.preview.reduced import ReducedCore
from vlora.merge.preview.spread import Spread

__all__ = ["PreviewModel", "Solved"]

Solved = tuple[Tensor, Tensor | None]
"""Loss of every adapter in the modules of gradient matching at some weightings, and its variance. Shapes ``(k, P)``."""


@dataclass(frozen=True)
class PreviewModel:
    """Forms of all adapters, which adapter belongs to which task, and modules of gradient matching."""

    tasks: list[str]
    members: list[list[int]]
    """Per task, numbers of its adapters."""
    forms: Tensor
    """M_t / 2. Shape ``(P, P, P)``: adapter whose loss it is, u, v."""
    linear: Tensor | None
    """K_ts. Shape ``(P, P, P, P)``: adapter whose loss it is, s, u, v; None if an adapter has no posterior."""
    square: Tensor | None
    """R_t / 2. Shape ``(P, P, P)``."""
    scale: float = 1.0
    """Factor on the whole sum."""
    cores: Sequence[ReducedCore] = ()
    """Modules that are merged by gradient matching; they are not in the forms."""
    plain: Tensor | None = None
    """<W_u, W_v> over the other modules. Shape ``(P, P)``; None where no mixture is asked for."""
    tau: float = 1.0
    """Prior precision of the merge; without cores it has no influence."""
    mixture: float = math.inf
    """Relative temperature of the mixtures; inf averages the adapters of a task."""
    spread: Spread | None = None
    """Noise of the losses in the cores; None without cores or without posteriors."""

    def predict(self, weights: Tensor, solved: Solved | None = None) -> tuple[Tensor, Tensor | None]:
        """Loss increase per task, and its variance.

        Args:
            weights: One row per weighting. Shape ``(k, T)``.
            solved: What is known better than by the reduced cores.

        Returns:
            Two tensors of shape ``(k, T)``; nats over all training examples of the task, lower is better.
        """
        increases, variances = [], []
        shares = self.coefficients(weights)
        matched = self._matched(weights, shares) if solved is None else solved
        alone = self._alone()
        for own in self.members:
            means, spreads = zip(*(self._of_adapter(t, shares, matched) for t in own), strict=True)
            spread = torch.stack([s for s in spreads if s is not None]) if spreads[0] is not None else None
            loss, variance = over_members(torch.stack(means), spread, alone[own].mean().item(), self.mixture)
            increases.append(loss)
            if variance is not None:
                variances.append(variance)
        return torch.stack(increases, -1), torch.stack(variances, -1) if variances else None

    def without(self) -> Tensor:
        """Loss increase per task when there is no adapter at all, X = 0. Shape ``(T,)``."""
        alone = self._alone()
        losses = [alone[own] for own in self.members]
        return torch.stack(
            [over_members(v[:, None], None, v.mean().item(), self.mixture)[0][0] for v in losses]
        )

    def coefficients(self, weights: Tensor) -> Tensor:
        """c: weight of every adapter in the merge, without ``scale``. Shape ``(k, P)``."""
        if self.plain is not None and not math.isinf(self.mixture):
            losses = surrogate(self.plain, self.cores, self.tau)
            return member_weights(losses, weights, self.members, self.mixture)
        spread = weights.new_zeros(weights.shape[1], self.forms.shape[0])
        for task, own in enumerate(self.members):
            spread[task, own] = 1.0 / len(own)
        return weights @ spread

    def _alone(self) -> Tensor:
        """Loss increase per adapter when there is none. Shape ``(P,)``."""
        alone = torch.stack([self.forms[t, t, t] for t in range(self.forms.shape[0])])
        for core in self.cores:
            nothing = torch.zeros(1, len(core.adapters), dtype=torch.float64)
            alone[core.adapters] += core.losses(nothing, 1.0)[0]
        return alone

    def matched(self, shares: Tensor) -> Tensor:
        """Loss increase of every adapter in the modules of gradient matching. Shape ``(k, P)``.

        Args:
            shares: Weight of every adapter in the merge. Shape ``(k, P)``.
        """
        total = torch.zeros_like(shares)
        for core in self.cores:
            total[:, core.adapters] += core.losses(shares[:, core.adapters], self.scale)
        return total

    def _matched(self, weights: Tensor, shares: Tensor) -> Solved:
        losses = self.matched(shares)
        places = weights if math.isinf(self.mixture) else shares
        return losses, None if self.spread is None else self.spread.variance(places, losses)

    def _of_adapter(self, t: int, shares: Tensor, matched: Solved) -> tuple[Tensor, Tensor | None]:
        d = self.scale * shares
        d[:, t] -= 1.0
        increase = torch.einsum("ku,uv,kv->k", d, self.forms[t], d) + matched[0][:, t]
        if self.linear is None or self.square is None or (self.cores and matched[1] is None):
            return increase, None
        outer = torch.einsum("ku,kv->kuv", d, d)
        spread = torch.einsum("ks,suv,kuv->k", d.square(), self.linear[t], outer)
        spread = spread + torch.einsum("ks,su,ku->k", d.square(), self.square[t], d.square())
        return increase, spread if matched[1] is None else spread + matched[1][:, t]
