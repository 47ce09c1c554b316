"""Configurations of ``vlora merge``: our own YAML, or mergekit's for the methods that both have."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vlora.config import load_config, read_mapping
from vlora.errors import ConfigError
from vlora.merge.config import MergeConfig
from vlora.merge.mergekit import is_mergekit, translate

__all__ = ["load_merge"]


def load_merge(path: Path, overrides: Sequence[str] = ()) -> MergeConfig:
    """Read a configuration; of a mergekit file every difference is told in one line on stderr.

    Args:
        path: YAML file.
        overrides: ``key=value`` changes, in our keys; a mergekit file needs ``output=FOLDER``.

    Raises:
        ConfigError: What is wrong with which key.
    """
    where, values = read_mapping(path)
    if not is_mergekit(values):
        return load_config(MergeConfig, path, overrides)
    translated, lines = translate(values)
    for line in lines:
        print(f"note: mergekit: {line}", file=sys.stderr)
    if "models" in translated:
        raise ConfigError(f"{where} merges whole models; give adapters (base+adapter)")
    if not any(override.startswith("output=") for override in overrides):
        raise ConfigError(f"{where} is a mergekit configuration, which names no output; add output=FOLDER")
    return load_config(MergeConfig, translated, overrides)
