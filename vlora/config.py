"""Configuration files: YAML in, frozen dataclasses out, every mistake named with its key.

A configuration class is a frozen stdlib dataclass with ``__pydantic_config__ = ConfigDict(extra="forbid")``;
pydantic checks it at this boundary only, everything inside sees plain dataclasses.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from vlora.errors import ConfigError

__all__ = ["config_sha256", "load_config", "read_mapping", "save_config", "suggest_key", "to_plain"]

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping, naming a repeated key instead of silently keeping the last."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise ConfigError(f"key {repeated[0]!r} is given twice{node.start_mark}; remove one of them")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # YAML 1.1 wants "1.0e-4"; people write "1e-4"
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(
    cls: type[T],
    source: str | os.PathLike | Mapping,
    overrides: Sequence[str] = (),
    *,
    expand: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """Read a configuration and check it against its dataclass.

    Args:
        cls: The dataclass to build.
        source: Path of a YAML file, or an already parsed mapping.
        overrides: ``key.sub=value`` strings, applied in order; values are parsed as YAML.
        expand: Applied to the parsed values before they are checked, to spell out short forms.

    Returns:
        The checked, frozen configuration.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown or missing, or a value is not usable.
    """
    where, values = read_mapping(source)
    for override in overrides:
        _apply_override(values, override)
    if expand is not None:
        values = expand(values)
    for key, value in _flags([cls], values, ""):
        raise ConfigError(f"{where}: {key}: expected a number, got {str(value).lower()}")
    try:
        return pydantic.TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_explain(cls, e) for e in _telling(error.errors()))
        ) from None


def to_plain(config: Any) -> Any:
    """Turn a configuration into dicts, lists and scalars that JSON and YAML can write."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def config_sha256(config: Any) -> str:
    """Hash of the resolved configuration; equal configurations hash equal on every machine."""
    text = json.dumps(to_plain(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def save_config(config: Any, path: str | os.PathLike) -> None:
    """Write the resolved configuration as YAML that :func:`load_config` reads back unchanged."""
    text = yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=100)
    Path(path).write_text(text, encoding="utf-8")


def suggest_key(key: str, known: Sequence[str]) -> str:
    """Words for an unknown key: the closest known one if there is any, then all of them."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key {key!r}; {hint}keys here: {', '.join(known)}"


def read_mapping(source: str | os.PathLike | Mapping) -> tuple[str, dict[str, Any]]:
    """Name of a source for messages, and its keys, not yet checked against any class.

    Raises:
        ConfigError: The file is missing or not YAML.
    """
    if isinstance(source, Mapping):
        return "config", json.loads(json.dumps(to_plain(source)))
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; give a YAML file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8; give a YAML file") from None
    try:
        values = _Loader(text).get_single_data()  # the loader itself refuses characters that YAML has not
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    return str(path), values


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"override {override!r} is not of the form key=value, e.g. optimizer.lr=1e-3")
    *parents, last = name.split(".")
    for parent in parents:
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"override {override!r}: {parent!r} holds a {type(inner).__name__}, not a section"
            )
        values = inner
    loader = _Loader(text)
    try:
        values[last] = loader.get_single_data()
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    finally:
        loader.dispose()


def _flags(annotations: Sequence[Any], value: Any, key: str) -> Iterator[tuple[str, bool]]:
    """Keys with true or false where any of these types wants a number; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        leaves = [leaf for annotation in annotations for leaf in _leaves(annotation)]
        allowed = any(leaf in (bool, object, Any) or isinstance(leaf, bool) for leaf in leaves)
        if not allowed and (int in leaves or float in leaves):
            yield key, value
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flags(annotations, item, f"{key}.{index}")
    elif isinstance(value, Mapping):
        classes = [found for annotation in annotations for found in _dataclasses_in(annotation)]
        for name, item in value.items():
            inner = [hints[name] for hints in map(typing.get_type_hints, classes) if name in hints]
            if inner or not classes:
                yield from _flags(inner or annotations, item, f"{key}.{name}" if key else str(name))


def _leaves(annotation: Any) -> list[Any]:
    """Types and literal values that an annotation is made of."""
    parts = typing.get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _telling(errors: Sequence[Any]) -> list[Any]:
    """Errors worth showing, typos first; of a union, the branch that got furthest."""
    deepest = {
        e["loc"][0]: max(len(o["loc"]) for o in errors if o["loc"][:1] == e["loc"][:1])
        for e in errors
        if e["loc"]
    }
    kept = [
        e
        for e in errors
        if not e["loc"] or not e["type"].endswith("_type") or len(e["loc"]) == deepest[e["loc"][0]]
    ]
    return sorted(kept, key=lambda e: "unexpected" not in e["type"])


def _explain(cls: type, error: Any) -> str:
    """One clause for one pydantic error: the full key, what was expected, what came."""
    path = [part for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    path = [
        part for part in path if part not in ("str", "int", "float", "bool") and str(part)[:1] not in _UPPER
    ]
    key = ".".join(str(part) for part in path)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parents = ".".join(str(part) for part in path[:-1])
        known = [f.name for f in dataclasses.fields(_class_at(cls, path[:-1]))]
        return (f"in {parents}: " if parents else "") + suggest_key(str(path[-1]), known)
    if error["type"] in ("missing", "missing_argument"):
        return f"{key}: this key is required"
    if error["type"] == "dataclass_type":
        keys = ", ".join(f.name for f in dataclasses.fields(_class_at(cls, path)))
        return f"{key}: expected a section with keys of {keys}; got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    got = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{key}: {message}{got}" if key else message


_UPPER = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # union members are named by class; keys are lower case


def _class_at(cls: Any, path: Sequence[Any]) -> Any:
    """Dataclass that holds the key reached by ``path``; union members and lists are looked through."""
    for part in path:
        inner = typing.get_type_hints(cls).get(str(part)) if dataclasses.is_dataclass(cls) else None
        for candidate in _dataclasses_in(inner):
            cls = candidate
            break
    return cls


def _dataclasses_in(annotation: Any) -> list[Any]:
    if dataclasses.is_dataclass(annotation):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [found for arg in typing.get_args(annotation) for found in _dataclasses_in(arg)]
    return []
