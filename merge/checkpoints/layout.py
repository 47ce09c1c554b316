"""Where the tensors of the output lie: shards as transformers names them, headers, offsets, index.

Shards are filled in the order of the tensors until the next one would pass ``max_shard_size`` (huggingface_hub's
rule), and headers are padded to 8 bytes. All of it is known before a tensor is read, so files get their full size at
once and every block can be written at its place by any thread.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.checkpoints.headers import DTYPES, INDEX, SINGLE, TensorEntry

__all__ = ["Shard", "index_json", "lay_out", "parse_size"]

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True)
class Shard:
    """One output file."""

    file: str
    header: bytes
    """Length, JSON and padding: everything before the first tensor."""
    tensors: Mapping[str, TensorEntry]
    """Name -> dtype, shape and place in the file."""

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(entry.nbytes for entry in self.tensors.values())


def lay_out(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], max_shard_size: int, metadata: Mapping[str, str]
) -> list[Shard]:
    """Distribute tensors over files.

    Args:
        tensors: Name, dtype (as in headers) and shape, in output order.
        max_shard_size: Bytes; a tensor that is larger gets a file of its own.
        metadata: Goes into every header, e.g. ``{"format": "pt"}``.
    """
    entries = [TensorEntry(name, dtype, shape, Path(), 0) for name, dtype, shape in tensors]
    groups: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.nbytes
    count = len(groups)
    names = (
        [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    return [_shard(name, group, metadata) for name, group in zip(names, groups, strict=True)]


def index_json(shards: Sequence[Shard]) -> dict[str, Any]:
    """Content of ``model.safetensors.index.json``."""
    entries = [entry for shard in shards for entry in shard.tensors.values()]
    return {
        "metadata": {
            "total_parameters": sum(entry.numel for entry in entries),
            "total_size": sum(entry.nbytes for entry in entries),
        },
        "weight_map": dict(sorted((name, shard.file) for shard in shards for name in shard.tensors)),
    }


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``5GB`` (10^9) or ``500MiB`` (2^20), as transformers reads it.

    Raises:
        ConfigError: It is no size, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?\s*", str(text).upper())
    size = int(float(match[1]) * _UNITS[match[2] if match[2] not in (None, "B") else ""]) if match else 0
    if size < 1:
        raise ConfigError(f"max_shard_size must be a size such as 5GB or 500MB, got {text!r}")
    return size


def _shard(file: str, entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> Shard:
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    # Wider entries first, as the safetensors library sorts them: every tensor then starts at a multiple of its width.
    entries = sorted(entries, key=lambda entry: -DTYPES[entry.dtype].itemsize)
    for entry in entries:
        fields[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [begin, begin + entry.nbytes],
        }
        begin += entry.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    placed, start = {}, len(header)
    for entry in entries:
        placed[entry.name] = TensorEntry(entry.name, entry.dtype, entry.shape, Path(file), start)
        start += entry.nbytes
    return Shard(file, header, placed)


def names_in(shards: Sequence[Shard]) -> list[str]:
    """File names, with the index where there is one."""
    return [shard.file for shard in shards] + ([INDEX] if len(shards) > 1 else [])
