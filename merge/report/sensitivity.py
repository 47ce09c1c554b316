"""How much of a merge hangs on its prior: merged again, on a few modules, with half and twice tau.

Per variant, against the merge as it was asked for, all at the same rank rule:

    update      |X' - X|_F / |X|_F over the sampled modules; 0 nothing changes
    predicted   sum l_t(X') / sum l_t(X) - 1 per adapter, l_t the predicted loss of
                :mod:`vlora.merge.curvature.quadratic`; negative: that adapter's task would lose less

With a prior from a file, a third variant has tau I in its place; with ``keep``, one goes without.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlora.merge.curvature.quadratic import Metric, product
from vlora.merge.methods.gradient_matching import DEFAULT_TAU
from vlora.merge.report.conflict import conflict
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["Sensitivity", "sampled"]

_SAMPLED, _SAMPLED_WIDE, _WIDE = 4, 2, 2048
_PLAIN = Metric(None, None, 1.0, "isotropic")
_KINDS = ("kronecker", "separable")
"""Curvatures in which the prior has a part."""


def sampled(modules: Sequence[str], widest: int = 0) -> list[str]:
    """At most four modules, evenly spaced in name order, first and last among them; two of a wide model.

    Args:
        modules: In name order.
        widest: Most inputs or outputs of a module; from 2048 on, merging one again takes seconds.
    """
    last = min(_SAMPLED if widest < _WIDE else _SAMPLED_WIDE, len(modules)) - 1
    return [modules[round(i * (len(modules) - 1) / max(1, last))] for i in range(last + 1)]


@dataclass
class Sensitivity:
    """Changes, added up over modules."""

    function: Callable[..., MergedModule]
    rank: str | float
    modules: list[str] = field(default_factory=list)
    size: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)
    """Variant -> sum of squared changes of the update."""
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    """Variant -> adapter -> predicted loss."""

    def add(
        self,
        updates: Sequence[LoraUpdate],
        weights: Sequence[float],
        merged: MergedModule,
        options: Mapping[str, Any],
    ) -> None:
        """One module.

        Args:
            updates: The adapters' updates.
            weights: Their weights.
            merged: What came out.
            options: With which options.
        """
        if merged.report.get("curvature") not in _KINDS:
            return
        self.modules.append(updates[0].module)
        own = merged.update
        self.size += product(_PLAIN, own, own)
        _add(self.losses, updates, own)
        tau = options.get("tau", DEFAULT_TAU)
        variants = {"half": {"tau": tau / 2}, "double": {"tau": 2 * tau}}
        if options.get("prior") is not None:
            variants["isotropic"] = {"prior": None}
        if options.get("keep") is not None and options.get("keep_weight", 1.0) > 0:
            variants["without_keep"] = {"keep": None}
        for name, changed in variants.items():
            other = self.function(updates, weights, rank=self.rank, **{**options, **changed}).update
            gap = product(_PLAIN, other, other) - 2 * product(_PLAIN, other, own) + product(_PLAIN, own, own)
            self.apart[name] = self.apart.get(name, 0.0) + max(0.0, gap)
            _add(self.others.setdefault(name, {}), updates, other)

    def to_json(self) -> dict[str, Any]:
        """``modules``, and per variant ``update`` and ``predicted_loss``; empty where no prior had a part."""
        if not self.modules:
            return {}
        return {"modules": self.modules} | {name: self._variant(name) for name in self.apart}

    def _variant(self, name: str) -> dict[str, Any]:
        changes = {
            adapter: self.others[name][adapter] / loss - 1 if loss > 0 else None
            for adapter, loss in self.losses.items()
        }
        update = math.sqrt(self.apart[name] / self.size) if self.size > 0 else None
        return {"update": update, "predicted_loss": changes}


def _add(losses: dict[str, float], updates: Sequence[LoraUpdate], merged: LoraUpdate) -> None:
    found = conflict(updates, merged, [0] * len(updates))["predicted_loss"]
    for name, loss in found.items():
        losses[name] = losses.get(name, 0.0) + loss
