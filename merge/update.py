"""What a merge method sees of one adapter in one module, and what it gives back.

Notation (merging papers -> code): DeltaW = s B A -> ``scale * b @ a``; posterior precision S -> ``precision_*``;
prior precision H_0 -> ``prior_*``; site H = S - H_0 -> ``curvature_*``. All precisions are untempered: they count
training examples, N (h + delta) and N delta, never ``ess``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlora.grams import Gram

__all__ = ["LoraUpdate", "MergedModule", "present", "shared_a"]


@dataclass(frozen=True)
class LoraUpdate:
    """One adapter's update of one module with its (optional) mean-field posterior and curvature."""

    b: Tensor
    """Mean of B. Shape ``(m, r)``."""
    a: Tensor
    """Mean of A. Shape ``(r, n)``."""
    scale: float = 1.0
    """LoRA scaling s: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA."""
    precision_b: Tensor | None = None
    """N (h + delta) of B, shape ``(m, r)``; None if B is deterministic."""
    precision_a: Tensor | None = None
    """N (h + delta) of A, shape ``(r, n)``; None if A is deterministic (frozen)."""
    prior_b: float = 0.0
    """Prior precision N delta of every entry of B; the prior mean is zero."""
    prior_a: float = 0.0
    """Prior precision N delta of every entry of A."""
    input_gram: Gram | None = None
    """Gradient-weighted second moment of the module's inputs, G. Shape ``(n, n)``, any scale, whole or short."""
    output_gram: Gram | None = None
    """Second moment of the gradients at the module's outputs, S. Shape ``(m, m)``, any scale, whole or short."""
    adapter: str = "adapter"
    """Name of the adapter, for messages."""
    module: str = "module"
    """Name of the module, for messages."""
    activation_gram: Tensor | None = None
    """Unweighted second moment of the module's inputs, X^T X. Shape ``(n, n)``, any scale."""
    ancestor: "LoraUpdate | None" = None
    """What the adapter went on from, where the merge is of one lineage (:mod:`vlora.merge.methods.lineage`): mean m_0
    and precision S_0. The precisions of this update are then those of its own data, N h, and its priors 0."""

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.a.shape[0]

    @property
    def curvature_b(self) -> Tensor | None:
        """Site precision N h of B; entries where the noisy h is negative count as no evidence."""
        return None if self.precision_b is None else (self.precision_b - self.prior_b).clamp_min(0)

    @property
    def curvature_a(self) -> Tensor | None:
        """Site precision N h of A, clamped like :attr:`curvature_b`."""
        return None if self.precision_a is None else (self.precision_a - self.prior_a).clamp_min(0)

    def delta(self) -> Tensor:
        """The dense update s B A, shape ``(m, n)``; for tests and small modules only."""
        return self.scale * self.b @ self.a

    def with_scale(self, scale: float) -> "LoraUpdate":
        """The same update written with another scaling: B takes the ratio, its precision the inverse square."""
        ratio = self.scale / scale
        if ratio == 1.0:
            return self
        precision = None if self.precision_b is None else self.precision_b / ratio**2
        return replace(
            self, b=self.b * ratio, precision_b=precision, prior_b=self.prior_b / ratio**2, scale=scale
        )


@dataclass(frozen=True)
class MergedModule:
    """Result of a merge of one module: an update again, and what happened to it."""

    update: LoraUpdate
    report: dict[str, Any] = field(default_factory=dict)
    """``curvature`` (what weighted the merge), ``exact``, ``retained_energy`` (1 = nothing lost to the rank),
    ``space`` (of element-wise methods), ``clamped_fraction`` (share of precisions that negative weights would have
    made non-positive)."""


def present(updates: Sequence[LoraUpdate], weights: Sequence[float]) -> tuple[list[LoraUpdate], list[float]]:
    """Updates of rank > 0 and their weights; an adapter without the module takes part as a zero update."""
    kept = [(u, w) for u, w in zip(updates, weights, strict=True) if u.rank > 0]
    return [u for u, _ in kept], [w for _, w in kept]


def shared_a(updates: Sequence[LoraUpdate]) -> bool:
    """Whether all updates have the same A to the last bit, so that their sum is linear in B.

    A factor that is frozen stays equal; two trained factors never are, even from one init.
    """
    first = updates[0].a
    return all(u.a.shape == first.shape and torch.equal(u.a, first) for u in updates[1:])
