"""What pruning removed, and the steps that pruning entries and pruning rank components share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.lora_layout import LoraKeys, split_keys
from vlora.posterior.posterior import Posterior

__all__ = [
    "Pruned",
    "PrunedModule",
    "ascending",
    "check_choice",
    "describe",
    "lowest",
    "saliency",
    "stochastic_modules",
    "with_lineage",
]


@dataclass(frozen=True)
class PrunedModule:
    """What was removed from one module."""

    module: str
    total: int
    """Entries with h, or rank components, before."""
    removed: int
    predicted_loss_increase: float
    """Nats per example, or per target token where the loss was a token mean; lower is better."""
    largest_removed_snr: float | None
    """Signal-to-noise ratio of the best that was removed; None if nothing was."""
    smallest_kept_snr: float | None
    """Signal-to-noise ratio of the worst that was kept; None if nothing was."""


@dataclass(frozen=True)
class Pruned:
    """A pruned posterior and what pruning did."""

    posterior: Posterior
    what: Literal["entries", "ranks"]
    modules: list[PrunedModule]

    @property
    def unit(self) -> str:
        """What the loss of this posterior is a mean over."""
        return "target token" if self.posterior.meta.loss_reduction == "token_mean" else "example"

    @property
    def total(self) -> int:
        """Entries or components before."""
        return sum(module.total for module in self.modules)

    @property
    def removed(self) -> int:
        """Entries or components removed."""
        return sum(module.removed for module in self.modules)

    @property
    def predicted_loss_increase(self) -> float:
        """Sum over the modules, nats per :attr:`unit`."""
        return sum(module.predicted_loss_increase for module in self.modules)


def with_lineage(result: Posterior, before: Posterior, pruned: Pruned) -> Posterior:
    """Source and note of the pruning. Calibration and leading directions were those of the mean before: dropped."""
    what = "rank components" if pruned.what == "ranks" else "entries of A and B"
    note = (
        f"Pruned: {pruned.removed} of {pruned.total} {what} with the lowest signal-to-noise ratio were removed; "
        f"predicted loss increase {pruned.predicted_loss_increase:.3g} nats per {pruned.unit}."
    )
    source: dict[str, Any] = {
        "operation": f"prune {pruned.what}",
        "mean_sha256": before.meta.mean_sha256 or tensors_sha256(before.mean),
        "num_examples": before.meta.num_examples,
        "sources": before.meta.sources,
    }
    meta = replace(result.meta, sources=[source], notes=[*before.meta.notes, note])
    return replace(result, meta=meta, calibration=None, directions=None)


def stochastic_modules(posterior: Posterior) -> dict[str, LoraKeys]:
    """Modules with at least one stochastic factor.

    Raises:
        ConfigError: Another kind of adapter, or no h on any factor.
    """
    kind = posterior.adapter_config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"this is a {kind} adapter; only LORA adapters can be pruned")
    found = {
        name: keys
        for name, keys in split_keys(posterior.mean)[0].items()
        if keys.a in posterior.hess or keys.b in posterior.hess
    }
    if not found:
        raise ConfigError(
            "no LoRA factor of this adapter has h, so no entry has a signal-to-noise ratio; "
            "prune a posterior that vlora trained"
        )
    return found


def check_choice(**choice: float | None) -> None:
    """Exactly one of the ways to choose is given, and within its range.

    Raises:
        ConfigError: Which is not.
    """
    given = {name: value for name, value in choice.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(f"give exactly one of {', '.join(choice)}, got {', '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if name == "fraction" and not 0 <= value <= 1:
        raise ConfigError(f"fraction must lie between 0 and 1, got {value}")
    if name == "snr" and not value >= 0:
        raise ConfigError(f"snr must be 0 or more, got {value}")
    if name == "keep_rank" and value < 1:
        raise ConfigError(f"keep_rank must be at least 1, got {value}")


def lowest(
    ratios: Mapping[str, Tensor], fraction: float | None, snr: float | None, *, together: bool
) -> dict[str, Tensor]:
    """Masks of what lies below ``snr``, or of the lowest ``fraction`` (rounded down) of each tensor or of all."""
    if fraction is None:
        assert snr is not None
        return {key: ratio < snr for key, ratio in ratios.items()}
    if not together:
        return {key: ascending(ratio) < _count(fraction, ratio.numel()) for key, ratio in ratios.items()}
    joined = torch.cat([ratio.flatten() for ratio in ratios.values()])
    parts = (ascending(joined) < _count(fraction, len(joined))).split(
        [ratio.numel() for ratio in ratios.values()]
    )
    return {key: part.view_as(ratio) for (key, ratio), part in zip(ratios.items(), parts, strict=True)}


def _count(fraction: float, total: int) -> int:
    """``fraction * total`` rounded down, but 0.29 of 100 is 29."""
    return math.floor(fraction * total + 1e-9)


def ascending(values: Tensor) -> Tensor:
    """Place of every value in ascending order, ties in the order they stand in; same shape."""
    return values.flatten().argsort(stable=True).argsort().view_as(values)


def describe(name: str, pairs: Sequence[tuple[Tensor, Tensor]], increase: float) -> PrunedModule:
    """Report of one module from its (ratios, masks of what was removed) and the predicted loss increase."""
    ratio = torch.cat([ratio.flatten() for ratio, _ in pairs])
    mask = torch.cat([mask.flatten() for _, mask in pairs])
    removed, kept = ratio[mask], ratio[~mask]
    return PrunedModule(
        name,
        len(ratio),
        len(removed),
        increase,
        removed.max().item() if len(removed) else None,
        kept.min().item() if len(kept) else None,
    )


def saliency(posterior: Posterior, masks: Mapping[str, Tensor]) -> float:
    """1/2 sum h m^2 over the masked entries; a negative h counts as flat."""
    total = 0.0
    for key, mask in masks.items():
        mean, hess = posterior.mean[key].cpu().double(), posterior.hess[key].cpu().double().clamp_min(0)
        total += 0.5 * (hess * mean.square())[mask].sum().item()
    return total
