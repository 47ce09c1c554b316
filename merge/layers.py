"""Settings that differ between modules: by a regular expression on the name, and along the layers.

A list is a gradient over the L layers: its K values stand at equal distances from the first layer to the last, and
layer l takes the point x = l (K - 1) / (L - 1) on the straight lines between them,

    v(l) = (1 - x + i) v_i + (x - i) v_(i+1),      i = floor(x)

which is mergekit's rule. A name outside the layers (embeddings, final norm, head) takes the first value, a model of one
layer the last. The number of a layer is the first number between dots in a name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlora.errors import ConfigError

__all__ = [
    "OptionsByModule",
    "Setting",
    "check_pattern",
    "check_setting",
    "count_layers",
    "layer_number",
    "value_at",
]

Setting = float | list[float]
"""One value, or a gradient over the layers."""


def layer_number(name: str) -> int | None:
    """Number of the layer that a module or tensor is in; None outside the layers."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return None if found is None else int(found[1])


def count_layers(names: Sequence[str]) -> int:
    """Highest number of a layer, plus 1; 0 without any."""
    return 1 + max((n for n in map(layer_number, names) if n is not None), default=-1)


def value_at(setting: Setting | Sequence[float], name: str, layers: int) -> float:
    """The value that a setting has for a module or tensor.

    Args:
        setting: One value, or a gradient.
        name: Of the module or tensor.
        layers: Number of layers L of the model.

    Raises:
        ConfigError: The name has a higher layer than the model.
    """
    if isinstance(setting, (int, float)):
        return float(setting)
    layer = layer_number(name)
    if layer is None:
        return float(setting[0])
    if layer >= layers:
        raise ConfigError(
            f"{name} is layer {layer} of num_layers: {layers}; give the number of layers of the model"
        )
    place = (len(setting) - 1) * (layer / (layers - 1) if layers > 1 else 1.0)
    low = min(int(place), len(setting) - 1)
    part = place - low
    return (1 - part) * float(setting[low]) + part * float(setting[min(low + 1, len(setting) - 1)])


def check_pattern(pattern: str, where: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        ConfigError: What is wrong with it.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: {pattern!r} is not a regular expression: {error}") from None


def check_setting(setting: Setting | Sequence[float], where: str) -> list[float]:
    """The values of a setting, refused where one is not finite or there is none.

    Raises:
        ConfigError: What is wrong with which value.
    """
    values = [setting] if isinstance(setting, (int, float)) else list(setting)
    if not values:
        raise ConfigError(
            f"{where} is an empty list; give a number, or values from the first layer to the last"
        )
    for value in values:
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; give a finite number")
    return [float(value) for value in values]


@dataclass(frozen=True)
class OptionsByModule:
    """Options of a method, with other values in some modules."""

    common: Mapping[str, Any] = field(default_factory=dict)
    patterns: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    """Option -> regular expression -> value in the modules whose name it matches; first match."""
    layers: int = 0

    def of(self, module: str) -> dict[str, Any]:
        """Options for a module."""
        return {
            **self.common,
            **{name: v for name in self.patterns if (v := self._own(name, module)) is not None},
        }

    def check_patterns(self, modules: Sequence[str]) -> None:
        """Refuse patterns that match nothing.

        Raises:
            ConfigError: Which pattern of which option.
        """
        for name, values in self.patterns.items():
            for pattern in values:
                if not any(re.search(pattern, module) for module in modules):
                    raise ConfigError(
                        f"the pattern {pattern!r} of module_options.{name} matches none of {len(modules)} modules "
                        f"(first {modules[0]}); correct it or remove it"
                    )

    def _own(self, name: str, module: str) -> float | None:
        for pattern, setting in self.patterns[name].items():
            if re.search(pattern, module):
                return value_at(setting, module, self.layers)
        return None
