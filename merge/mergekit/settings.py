"""Parameters of a mergekit configuration: a number, a gradient over layers, or a list of filters with either.

mergekit looks a tensor up as follows (its README, "Parameter Specification"; version 0.1.5 run as an oracle): of a list
of filters the first counts that is a part of the tensor's name, or ``*``, or missing; a list of numbers is a gradient,
linear between values at equal distances from the first layer to the last; a tensor outside the layers takes the first
value. Our gradients (:mod:`vlora.merge.layers`) follow the same rule; a filter becomes an escaped regular expression.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.layers import Setting

__all__ = ["EVERYWHERE", "Spread", "common_spread", "scalar", "spread_of"]

EVERYWHERE = "."
"""Regular expression that every name matches."""


@dataclass
class Spread:
    """A setting in our form: one value, and other ones where a pattern matches."""

    value: float | None
    """None where the patterns leave nothing over."""
    patterns: dict[str, Setting] = field(default_factory=dict)

    @property
    def has_gradient(self) -> bool:
        """Whether a value depends on the layer."""
        return any(isinstance(v, list) for v in self.patterns.values())

    def mapped(self, change: Callable[[float], float]) -> "Spread":
        """With every number changed; a change that is linear keeps gradients what they are."""
        patterns: dict[str, Setting] = {
            k: [change(x) for x in v] if isinstance(v, list) else change(v) for k, v in self.patterns.items()
        }
        return Spread(None if self.value is None else change(self.value), patterns)


def scalar(value: Any, where: str) -> Any:
    """A setting that must be one value here.

    Raises:
        ConfigError: It is a gradient, or differs between tensors.
    """
    if _is_gradient(value):
        raise ConfigError(
            f"mergekit {where}: {value} is a gradient, and vlora takes one value for it; give one"
        )
    if isinstance(value, (list, Mapping)):
        rules = [_rule(entry, where) for entry in (value if isinstance(value, list) else [value])]
        if len(rules) == 1 and rules[0][0] is None:
            return scalar(rules[0][1], where)
        raise ConfigError(f"mergekit {where}: vlora takes one value for all tensors; give one")
    return value


def spread_of(value: Any, where: str, default: float | None = None) -> Spread:
    """A setting that may differ between tensors.

    Args:
        value: As the file has it.
        where: Name, for messages.
        default: For tensors that no filter takes; None: mergekit would stop there, and so do we.

    Raises:
        ConfigError: No value for some tensors, or something that is no number.
    """
    if not isinstance(value, (list, Mapping)):
        return Spread(_number(value, where))
    if _is_gradient(value):
        return Spread(None, {EVERYWHERE: _gradient(value, where)})
    patterns: dict[str, Setting] = {}
    for found, setting in (_rule(entry, where) for entry in (value if isinstance(value, list) else [value])):
        if found is None and not _is_gradient(setting):
            return Spread(_number(setting, where), patterns)
        own = _gradient(setting, where) if _is_gradient(setting) else _number(setting, where)
        patterns.setdefault(EVERYWHERE if found is None else re.escape(found), own)
        if found is None:
            return Spread(None, patterns)
    if default is not None:
        return Spread(default, patterns)
    raise ConfigError(f"mergekit {where}: the filters leave tensors without a value; add a last `- value: 1`")


def common_spread(values: Sequence[Any], name: str, default: float) -> Spread:
    """One setting for all models.

    Args:
        values: Setting per model; None where it has none.
        name: Name of the parameter.
        default: What mergekit takes where there is none.

    Raises:
        ConfigError: Models differ.
    """
    found = [Spread(default) if v is None else spread_of(v, name, default) for v in values]
    if any(v != found[0] for v in found):
        told = ", ".join(str(default if v is None else v) for v in values)
        raise ConfigError(
            f"mergekit {name}: vlora has one {name} for all models, here: {told}; make them equal"
        )
    return found[0]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"mergekit {where}: expected a number, got {value!r}")
    return float(value)


def _gradient(values: Any, where: str) -> list[float]:
    if not values:
        raise ConfigError(
            f"mergekit {where}: expected values from the first layer to the last, got an empty list"
        )
    return [_number(value, where) for value in values]


def _rule(entry: Any, where: str) -> tuple[str | None, Any]:
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise ConfigError(
            f"mergekit {where}: expected a number or entries of filter and value, got {entry!r}"
        )
    found = entry.get("filter")
    return (None if found in (None, "*") else str(found)), entry["value"]


def _is_gradient(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(entry, Mapping) for entry in value)
