"""Parameters of a mergekit configuration: a scalar, a list of filters, or a gradient over layers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlora.errors import ConfigError

__all__ = ["common_scalar", "scalar", "weight_of"]


def scalar(value: Any, where: str) -> Any:
    """A setting that must be one value here.

    Raises:
        ConfigError: It is a gradient, or differs between tensors.
    """
    if _is_gradient(value):
        raise ConfigError(
            f"mergekit {where}: {value} is a gradient over layers, which vlora does not have; give one value"
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        rules = [_rule(entry, where) for entry in value]
        if len(rules) == 1 and rules[0][0] is None:
            return scalar(rules[0][1], where)
        raise ConfigError(f"mergekit {where}: filters are taken for weight only; give one value")
    if isinstance(value, Mapping):
        return scalar([value], where)
    return value


def common_scalar(values: Sequence[Any], name: str, default: Any) -> Any:
    """One value for all models.

    Args:
        values: Setting per model; None where it has none.
        name: Name of the parameter.
        default: What mergekit takes where there is none.

    Raises:
        ConfigError: Models differ.
    """
    found = [default if v is None else scalar(v, name) for v in values]
    if any(v != found[0] for v in found):
        told = ", ".join(map(str, found))
        raise ConfigError(
            f"mergekit {name}: vlora has one {name} for all models, here: {told}; make them equal"
        )
    return found[0]


def weight_of(value: Any, where: str) -> tuple[float, dict[str, float]]:
    """A weight setting as our ``weight`` and ``module_weights``.

    A filter is a substring of a tensor's name; it becomes a regular expression. Without a last value for all other
    tensors mergekit would stop there, and so do we.

    Raises:
        ConfigError: No weight for some tensors, or a gradient.
    """
    if value is None:
        raise ConfigError(f"mergekit {where}: weight is missing; give every model one")
    if isinstance(value, Mapping) or (isinstance(value, list) and not _is_gradient(value)):
        rules = [_rule(entry, where) for entry in (value if isinstance(value, list) else [value])]
        patterns: dict[str, float] = {}
        for found, setting in rules:
            if found is None:
                return _number(setting, where), patterns
            patterns.setdefault(re.escape(found), _number(setting, where))
        raise ConfigError(
            f"mergekit {where}: the filters of weight leave tensors without one; add a last `- value: 1`"
        )
    return _number(scalar(value, where), where), {}


def _number(value: Any, where: str) -> float:
    value = scalar(value, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"mergekit {where}: expected a number, got {value!r}")
    return float(value)


def _rule(entry: Any, where: str) -> tuple[str | None, Any]:
    if not isinstance(entry, Mapping) or "value" not in entry:
        raise ConfigError(
            f"mergekit {where}: expected a number or entries of filter and value, got {entry!r}"
        )
    found = entry.get("filter")
    return (None if found in (None, "*") else str(found)), entry["value"]


def _is_gradient(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(entry, Mapping) for entry in value)
