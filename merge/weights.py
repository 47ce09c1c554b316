"""Weights per adapter, and per module where a regular expression says so."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vlora.errors import ConfigError
from vlora.merge.layers import Setting, check_pattern, check_setting, count_layers, value_at

__all__ = ["Weights", "check_weights"]


@dataclass(frozen=True)
class Weights:
    """What each adapter counts, in general and in single modules."""

    scalars: Sequence[float]
    """One per adapter."""
    patterns: Sequence[Mapping[str, Setting]]
    """Per adapter: regular expression -> weight in the modules whose name it matches, one number or a gradient over the
    layers (:mod:`vlora.merge.layers`); first match."""
    layers: int = 0
    """Number of layers that gradients run over."""
    kind: str = "adapter"
    """What is merged, for messages: ``adapter`` or ``model``."""

    def of(self, module: str) -> list[float]:
        """One weight per adapter for a module (or a fully trained tensor); 0 leaves the adapter out there."""
        return [self._of(index, module) for index in range(len(self.scalars))]

    def counted(self, module: str, adapters: Sequence[int]) -> list[tuple[int, float]]:
        """Number and weight of the adapters that take part in a module, those of weight 0 left out.

        Args:
            module: Name of the module or key of the tensor.
            adapters: Numbers of the adapters that have it.

        Raises:
            ConfigError: Nobody who has the module is left.
        """
        kept = [(index, weight) for index, weight in enumerate(self.of(module)) if weight != 0]
        if not any(index in adapters for index, _ in kept):
            cure = (
                "leave the module out of the adapters"
                if self.kind == "adapter"
                else "give base_model to take it from"
            )
            raise ConfigError(
                f"{module}: module_weights give 0 to every {self.kind} that has it; leave one in, or {cure}"
            )
        return kept

    def over(self, modules: Sequence[str], layers: int | None = None) -> "Weights":
        """With the number of layers: as given, or as far as the names go."""
        return replace(self, layers=count_layers(modules) if layers is None else layers)

    def check_patterns(self, modules: Sequence[str], names: Sequence[str]) -> None:
        """Refuse patterns that match nothing.

        Args:
            modules: Names of all modules and fully trained tensors of the merge.
            names: Names of the adapters, for messages.

        Raises:
            ConfigError: Which pattern of which adapter.
        """
        for name, patterns in zip(names, self.patterns, strict=True):
            for pattern in patterns:
                if not any(re.search(pattern, module) for module in modules):
                    raise ConfigError(
                        f"{name!r}: the pattern {pattern!r} of module_weights matches none of {len(modules)} modules "
                        f"(first {modules[0]}); correct it or remove it"
                    )

    @property
    def uniform(self) -> bool:
        """Whether no adapter has weights per module."""
        return not any(self.patterns)

    def _of(self, index: int, module: str) -> float:
        for pattern, weight in self.patterns[index].items():
            if re.search(pattern, module):
                return value_at(weight, module, self.layers)
        return float(self.scalars[index])


def check_weights(
    weights: Sequence[float],
    count: int,
    module_weights: Sequence[Mapping[str, Setting]] | None = None,
    kind: str = "adapter",
) -> Weights:
    """One finite weight per adapter, none of them 0, and patterns that are regular expressions.

    Args:
        weights: One per adapter.
        count: Number of adapters.
        module_weights: Per adapter: regular expression -> weight or gradient; 0 is allowed here.
        kind: What is merged, for messages: ``adapter`` or ``model``.

    Raises:
        ConfigError: What is wrong with which weight.
    """
    if count == 0:
        raise ConfigError(f"nothing to merge: give at least one {kind}")
    if len(weights) != count:
        raise ConfigError(f"expected one weight per {kind}, got {len(weights)} weights for {count} {kind}s")
    for number, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise ConfigError(f"weight {number} is {weight}; give a finite number")
        if weight == 0:
            raise ConfigError(f"weight {number} is 0; leave that {kind} out instead")
    patterns = [{}] * count if module_weights is None else list(module_weights)
    if len(patterns) != count:
        raise ConfigError(f"expected module_weights for {count} {kind}s, got {len(patterns)}")
    for mapping in patterns:
        for pattern, weight in mapping.items():
            check_pattern(pattern, "module_weights")
            check_setting(weight, f"module_weights: the weight of {pattern!r}")
    return Weights([float(w) for w in weights], patterns, kind=kind)
