"""Models and adapters of a mergekit configuration: references, base, slices that are whole models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError

__all__ = ["Entry", "are_adapters", "entries_of", "layers_of", "split_revision"]


@dataclass
class Entry:
    """One model or adapter of the list."""

    path: str
    base: str | None
    """Base of an adapter; None for a whole model."""
    revision: str | None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def entries_of(values: Mapping[str, Any], method: str) -> tuple[list[Entry], str | None, list[str]]:
    """The entries without the base model, the base model, and lines about differences.

    Raises:
        ConfigError: The list has another form, or slices are not whole models.
    """
    lines: list[str] = []
    base = values.get("base_model")
    given = values.get("models")
    if values.get("slices"):
        given = _whole_slice(values["slices"], lines)
    if not isinstance(given, list) or not given:
        raise ConfigError("mergekit models: expected a list of entries with model: and parameters:")
    entries = []
    for entry in given:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
            raise ConfigError(f"mergekit models: expected entries with model: PATH, got {entry!r}")
        parameters = entry.get("parameters") or {}
        path, revision, adapter, adapter_revision = _parts(entry["model"])
        own = adapter or path
        if own == base and method != "slerp" and (method != "linear" or "weight" not in parameters):
            lines.append(f"{own} is the base model and adds no task vector; left out of the list")
            continue
        kind = path if adapter else _adapter_base(own)
        entries.append(Entry(own, kind, adapter_revision if adapter else revision, parameters))
    if method == "slerp" and base is not None:
        entries.sort(key=lambda e: e.path != base)  # t counts from the base
    return entries, base, lines


def _whole_slice(slices: Any, lines: list[str]) -> list[Any]:
    """The sources of one slice that is the whole model."""
    sources = (
        slices[0].get("sources") if isinstance(slices, list) and isinstance(slices[0], Mapping) else None
    )
    if not sources or len(slices) > 1:
        raise ConfigError(
            "mergekit slices: vlora merges whole models; several slices of layers have no counterpart"
        )
    ranges = {tuple(source.get("layer_range") or ()) for source in sources}
    layers = ranges.pop() if len(ranges) == 1 else ()
    if len(layers) != 2 or layers[0] != 0:
        raise ConfigError(
            "mergekit slices: vlora merges whole models; the layer ranges here are parts, or differ"
        )
    for source in sources:
        count = _config_of(str(source.get("model")).partition("+")[0]).get("num_hidden_layers")
        if count is not None and count != layers[1]:
            raise ConfigError(
                f"mergekit slices: {list(layers)} is not the whole of {source['model']} ({count} layers)"
            )
    shared = slices[0].get("parameters") or {}
    lines.append(f"the one slice {list(layers)} is taken to be the whole model")
    return [{**s, "parameters": {**shared, **(s.get("parameters") or {})}} for s in sources]


def are_adapters(entries: list[Entry]) -> bool:
    """Whether the entries are adapters (of one base); False for whole models.

    Raises:
        ConfigError: They are of both kinds, of several bases, or none.
    """
    kinds = {entry.base is not None for entry in entries}
    if not entries or len(kinds) > 1:
        raise ConfigError(
            "mergekit models: some entries are adapters (base+adapter) and some whole models; give one kind"
            if entries
            else "mergekit models: nothing is left besides the base model"
        )
    bases = {entry.base for entry in entries} - {None, ""}
    if len(bases) > 1:
        raise ConfigError(
            f"mergekit models: the adapters sit on different bases ({', '.join(sorted(map(str, bases)))})"
        )
    return kinds.pop()


def layers_of(model: str) -> int | None:
    """Number of layers that a local model's configuration names; None for any other place."""
    found = _config_of(model.partition("+")[0]).get("num_hidden_layers")
    return found if isinstance(found, int) else None


def _parts(reference: str) -> tuple[str, str | None, str | None, str | None]:
    """``model@revision+adapter@revision``."""
    model, _, adapter = reference.partition("+")
    path, revision = split_revision(model)
    own, own_revision = split_revision(adapter) if adapter else (None, None)
    return path, revision, own, own_revision


def split_revision(reference: str) -> tuple[str, str | None]:
    """``path@revision``; a folder whose name has an @ is a path."""
    path, _, revision = reference.partition("@")
    return (reference, None) if Path(reference).exists() else (path, revision or None)


def _adapter_base(path: str) -> str | None:
    """Base of a local adapter folder, "" if it names none; None for anything else."""
    config = Path(path).expanduser() / "adapter_config.json"
    return str(_json(config).get("base_model_name_or_path") or "") if config.is_file() else None


def _config_of(model: str) -> Mapping[str, Any]:
    path = Path(model).expanduser() / "config.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
