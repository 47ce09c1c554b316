r"""The variance of a predicted loss under gradient matching, from the posteriors of the adapters.

The predicted loss of task t at the merge X = k sum_s w_s W_s (G_s + tau I) C(w)^-1 is a quadratic form in the updates,

    l_t = 1/2 |sum_s W_s N_s|_t^2,      N_s = k w_s (G_s + tau I) C(w)^-1 - delta_st I,      D = sum_s W_s N_s

with |W|_t^2 = c_t tr(S_t W G_t W^T) (:mod:`vlora.merge.curvature.quadratic`). The updates are uncertain: the factors
theta = (B_s, A_s) have independent Gaussian posteriors of variances v = 1 / (ess (h + delta)); dW_s = s_s (dB_s A_s +
B_s dA_s). For Gaussian noise e with covariance V = diag(v), a loss l(theta + e) = l + g^T e + 1/2 e^T H e has

    Var = g^T V g + 1/2 tr((H V)^2)        (moments of a quadratic form; Mathai and Provost 1992, section 3.2)
    g:  dl/dB_s = s_s Gamma_s A_s^T,    dl/dA_s = s_s B_s^T Gamma_s,      Gamma_s = c_t S_t D G_t N_s^T
    H e:  the same with D replaced by sum_s dW_s N_s

The first term is the delta method, the second counts where g is small; it is estimated without bias from probes z of
random signs as the mean of 1/2 |V^1/2 H V^1/2 z|^2 (Hutchinson 1990). Deviations: the product dB dA is left out, as in
:mod:`vlora.merge.preview.noise`, and the curvature itself counts as known. All factors stay thin: with stacked B
(m x R) and Delta the rows of D in it, D G N_s^T needs one product with G_t, one solution with C(w) and one product with
G_s, R n^2 operations each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora.grams import Gram
from vlora.merge.curvature.quadratic import Metric, metric_of
from vlora.merge.curvature.total import Total, total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.update import LoraUpdate

__all__ = ["matching_noise", "matching_variance"]

_SINGLE_FROM = 256  # inputs from which on single precision is enough: it is a variance


def matching_variance(*args: Any, **settings: Any) -> Tensor:
    """Variance of every adapter's predicted loss in one module; arguments of :func:`matching_noise`. ``(k, P)``."""
    return matching_noise(*args, **settings).diagonal(dim1=-2, dim2=-1).mT


def matching_noise(
    updates: Sequence[LoraUpdate],
    absolute: Sequence[bool],
    coefficients: Tensor,
    tau: float,
    scale: float,
    probes: int = 1,
    temperatures: Sequence[float] | None = None,
) -> Tensor:
    """Products of the noise of every adapter's predicted loss between weightings, in one module.

    Args:
        updates: The updates that are present, each with an input Gram.
        absolute: Whether the loss of each is scaled by h.
        coefficients: Weight per adapter that is present. Shape ``(k, P)``.
        tau: Prior precision of the merge.
        scale: Factor on the merge.
        probes: Random signs per weighting for the second term; the same for all weightings.
        temperatures: Of each adapter's posterior, N / ess; 1 if not given.

    Returns:
        V^1/2 g, followed by V^1/2 H V^1/2 z / sqrt(2 probes), of each weighting times that of each other. Shape
        ``(P, k, k)``; the diagonals are the variances, in squared nats over all training examples.
    """
    dtype = torch.float32 if updates[0].a.shape[1] >= _SINGLE_FROM else torch.float64
    module = _module(updates, absolute, dtype, temperatures or [1.0] * len(updates))
    generator = torch.Generator().manual_seed(0)
    drawn = [module.probe(generator) for _ in range(probes)]
    noise: list[list[Tensor]] = [[] for _ in updates]
    for weights in coefficients:
        point = _Point.of(module, weights, tau, scale)
        for t, found in enumerate(noise):
            found.append(point.noise(t, drawn))
    stacked = (torch.stack(found) for found in noise)
    return torch.stack([rows @ rows.mT for rows in stacked]).to(torch.float64)


@dataclass(frozen=True)
class _Probe:
    """Noise of one standard deviation in every entry."""

    b: Tensor
    """s dB, stacked. Shape ``(m, R)``."""
    a: Tensor
    """dA, stacked. Shape ``(R, n)``."""
    pushed: list[Tensor]
    """S_t s dB per task."""
    inner: list[Tensor]
    """(s B)^T S_t s dB per task. Shape ``(R, R)``."""


@dataclass(frozen=True)
class _Module:
    """Stacked factors of all adapters and what their noise is."""

    a: Tensor
    b: Tensor
    """s B, stacked. Shape ``(m, R)``."""
    spread_a: Tensor
    """Standard deviation of A. Shape ``(R, n)``."""
    spread_b: Tensor
    """Standard deviation of s B. Shape ``(m, R)``."""
    ranks: list[int]
    grams: list[Gram]
    """G_s as stored."""
    factors: list[float]
    """To mean diagonal 1."""
    metrics: list[Metric]
    seen: list[Tensor]
    """c_t S_t s B. Shape ``(m, R)`` each."""
    inner: list[Tensor]
    """c_t (s B)^T S_t s B. Shape ``(R, R)`` each."""

    def probe(self, generator: torch.Generator) -> _Probe:
        """Random signs."""
        signs = [
            torch.randint(0, 2, x.shape, generator=generator).to(x.dtype).mul_(2).sub_(1)
            for x in (self.b, self.a)
        ]
        b, a = self.spread_b * signs[0], self.spread_a * signs[1]
        pushed = [m.scale * m.from_outputs(b) for m in self.metrics]
        return _Probe(b, a, pushed, [self.b.mT @ rows for rows in pushed])

    def damped(self, rows: Tensor, tau: float) -> Tensor:
        """Rows of adapter s times (G_s + tau I)."""
        parts = zip(rows.split(self.ranks), self.grams, self.factors, strict=True)
        return torch.cat([f * (part @ gram) + tau * part for part, gram, f in parts])


@dataclass(frozen=True)
class _Point:
    """One weighting of one module."""

    module: _Module
    shares: Tensor
    """k w_s per stacked row. Shape ``(R, 1)``."""
    total: Total
    tau: float
    merged: Tensor
    """Rows of the merge. Shape ``(R, n)``."""

    @classmethod
    def of(cls, module: _Module, weights: Tensor, tau: float, scale: float) -> "_Point":
        total, _ = total_curvature(module.grams, module.factors, weights.abs().tolist(), tau)
        ranks = torch.tensor(module.ranks)
        shares = (scale * weights).repeat_interleave(ranks).unsqueeze(-1).to(module.a.dtype)
        return cls(module, shares, total, tau, shares * total.rough(module.damped(module.a, tau)))

    def noise(self, t: int, probes: Sequence[_Probe]) -> Tensor:
        """Gradient and probes of the loss of adapter t, in standard deviations, as one vector."""
        module, metric = self.module, self.module.metrics[t]
        gap = self.merged - self._own(t, module.a)
        pushed = metric.from_inputs(gap)
        both = pushed @ gap.mT
        found = [self._in_deviations(t, module.seen[t] @ both, module.inner[t] @ pushed)]
        for probe in probes:
            moved = self.shares * self.total.rough(module.damped(probe.a, self.tau)) - self._own(t, probe.a)
            seen = metric.from_inputs(moved)
            on_b = probe.pushed[t] @ both + module.seen[t] @ (seen @ gap.mT)
            on_a = probe.inner[t] @ pushed + module.inner[t] @ seen
            found.append(self._in_deviations(t, on_b, on_a) / math.sqrt(2 * len(probes)))
        return torch.cat(found)

    def _in_deviations(self, t: int, on_b: Tensor, on_a: Tensor) -> Tensor:
        """V^1/2 g, from the gradient for s B and the one for A before N_s^T."""
        back = self.shares * self.module.damped(self.total.rough(on_a), self.tau) - self._own(t, on_a)
        parts = (on_b * self.module.spread_b, back * self.module.spread_a)
        return torch.cat([part.flatten() for part in parts])

    def _own(self, t: int, rows: Tensor) -> Tensor:
        """Rows of adapter t, zero elsewhere."""
        kept = torch.zeros_like(rows)
        start = sum(self.module.ranks[:t])
        own = slice(start, start + self.module.ranks[t])
        kept[own] = rows[own]
        return kept


def _module(
    updates: Sequence[LoraUpdate], absolute: Sequence[bool], dtype: torch.dtype, temperatures: Sequence[float]
) -> _Module:
    pairs = list(zip(updates, temperatures, strict=True))
    given = [u.input_gram.to(dtype) for u in updates if u.input_gram is not None]
    b = torch.cat([u.scale * u.b for u in updates], dim=1).to(dtype)
    metrics = [_cast(metric_of(u, own), dtype) for u, own in zip(updates, absolute, strict=True)]
    seen = [m.scale * m.from_outputs(b) for m in metrics]
    return _Module(
        torch.cat([u.a for u in updates]).to(dtype),
        b,
        torch.cat([t**0.5 * _deviation(u.precision_a, u.a) for u, t in pairs]).to(dtype),
        torch.cat([t**0.5 * abs(u.scale) * _deviation(u.precision_b, u.b) for u, t in pairs], dim=1).to(
            dtype
        ),
        [u.rank for u in updates],
        given,
        [unit_factor(gram, f"{u.adapter!r} in {u.module}") for gram, u in zip(given, updates, strict=True)],
        metrics,
        seen,
        [b.mT @ rows for rows in seen],
    )


def _deviation(precision: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if precision is None else precision.rsqrt()


def _cast(metric: Metric, dtype: torch.dtype) -> Metric:
    output, given = (None if m is None else m.to(dtype) for m in (metric.output, metric.input))
    return Metric(output, given, metric.scale, metric.kind)
