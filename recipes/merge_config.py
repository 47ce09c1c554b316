"""Configurations of ``vlora merge``: our own YAML, or mergekit's for the methods that both have."""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from vlora.config import load_config, read_mapping
from vlora.errors import ConfigError
from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.config import MergeConfig
from vlora.merge.mergekit import is_mergekit, translate

__all__ = ["load_adapter_merge", "load_merge"]


def load_merge(
    path: Path, overrides: Sequence[str] = (), *, writes: bool = True
) -> MergeConfig | ModelMergeConfig:
    """Read a configuration; of a mergekit file every difference is told in one line on stderr.

    ``models:`` or ``into: model`` make it one whose result is a model.

    Args:
        path: YAML file.
        overrides: ``key=value`` changes, in our keys; a mergekit file needs ``output=FOLDER``.
        writes: Whether the merge is to be carried out. If not, a missing ``output`` is filled with a free name here.

    Raises:
        ConfigError: What is wrong with which key.
    """
    where, values = read_mapping(path)
    kind = _kind(values, overrides)
    named = any(override.startswith("output=") for override in overrides)
    if not writes and not named and "output" not in values:
        overrides, named = [*overrides, f"output={_free_name()}"], True
        print(f"note: {where} names no output; to merge, add output=FOLDER", file=sys.stderr)
    if not is_mergekit(values):
        return load_config(kind, path, overrides)
    translated, lines = translate(values)
    for line in lines:
        print(f"note: mergekit: {line}", file=sys.stderr)
    if not named:
        raise ConfigError(f"{where} is a mergekit configuration, which names no output; add output=FOLDER")
    if kind is ModelMergeConfig:
        translated.pop("rank", None)  # what is added to a base has no rank to keep
    return load_config(_kind(translated, overrides), translated, overrides)


def load_adapter_merge(path: Path, overrides: Sequence[str] = ()) -> MergeConfig:
    """As :func:`load_merge`, for what looks at a merge of adapters into an adapter without writing it.

    Raises:
        ConfigError: The result would be a model; or as for :func:`load_merge`.
    """
    found = load_merge(path, overrides, writes=False)
    if isinstance(found, ModelMergeConfig):
        raise ConfigError(f"{path} merges into a model; this is for adapters: and into: adapter")
    return found


def _free_name() -> str:
    """A folder name that nothing in the working folder has."""
    names = chain(["merged"], (f"merged-{number}" for number in count(2)))
    return next(name for name in names if not Path(name).exists())


def _kind(values: Mapping[str, Any], overrides: Sequence[str]) -> type[MergeConfig] | type[ModelMergeConfig]:
    into = next(
        (o.partition("=")[2] for o in reversed(overrides) if o.startswith("into=")), values.get("into")
    )
    models = "models" in values and not is_mergekit(values)
    return ModelMergeConfig if models or into == "model" else MergeConfig
