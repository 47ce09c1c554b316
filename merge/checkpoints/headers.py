"""Safetensors headers of a checkpoint: which tensors it holds and where, without reading one of them.

A file is 8 bytes (length of the header, little endian), the header in JSON, and the tensors back to back. A checkpoint
is one such file, or several with an index, as transformers writes them.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlora.errors import CheckpointError
from vlora.posterior.hashing import CURVATURE

__all__ = [
    "DTYPES",
    "FLOATS",
    "INDEX",
    "SINGLE",
    "Checkpoint",
    "TensorEntry",
    "read_checkpoint",
    "read_header",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
"""Name of a dtype in a header -> torch's."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that can be merged; all others are copied."""

_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of one file."""

    name: str
    dtype: str
    """As in the header, e.g. ``BF16``."""
    shape: tuple[int, ...]
    path: Path
    start: int
    """First byte of the tensor in the file."""

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model, found by name."""

    name: str
    """Short name for messages."""
    folder: Path
    tensors: Mapping[str, TensorEntry]
    layout_sha256: Mapping[str, str]
    """File name -> hash of its header: names, dtypes, shapes and places of all tensors, the same for all fine-tunes."""

    @property
    def files(self) -> list[Path]:
        """Its weight files."""
        return [self.folder / file for file in self.layout_sha256]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())


def read_checkpoint(folder: Path, name: str) -> Checkpoint:
    """Read the headers of all weight files of a model folder.

    Raises:
        CheckpointError: There is no such folder, a file is missing, truncated or damaged; which one, and the cure.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{name!r}: no folder {folder}; give a model folder or a hub id")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{name!r}: {folder} is an adapter folder, not a model; list it under adapters: with into: model"
        )
    tensors: dict[str, TensorEntry] = {}
    hashes = {}
    index = _read_index(folder, name)
    for file in sorted(set(index.values())) if index else [_single(folder, name)]:
        path = folder / file
        if not path.is_file():
            raise CheckpointError(f"{name!r}: {INDEX} names {file}, which is not in {folder}; copy it again")
        entries, hashes[file] = read_header(path)
        tensors |= {entry.name: entry for entry in entries}
    lost = [key for key in index if key not in tensors]
    if lost:
        raise CheckpointError(
            f"{name!r}: {INDEX} lists {len(lost)} tensors that are in none of its files, first {lost[0]} "
            f"(expected in {index[lost[0]]}); copy the folder again"
        )
    return Checkpoint(name, folder, tensors, hashes)


def read_header(path: Path) -> tuple[list[TensorEntry], str]:
    """Tensors of one safetensors file, and the SHA-256 of its header.

    Raises:
        CheckpointError: The file is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else _LARGEST_HEADER + 1
        if length > min(_LARGEST_HEADER, size - 8):
            raise CheckpointError(f"{path} is truncated or no safetensors file ({size} bytes); copy it again")
        header = file.read(length)
    try:
        fields = json.loads(header)
        entries = [_entry(path, 8 + length, *item) for item in fields.items() if item[0] != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error}); copy it again") from None
    end = max((entry.start + entry.nbytes for entry in entries), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{path} is truncated or damaged: its header promises {end} bytes, it has {size}; copy it again"
        )
    return entries, hashlib.sha256(first + header).hexdigest()


def _entry(path: Path, origin: int, name: str, value: Mapping[str, Any]) -> TensorEntry:
    if value["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the dtype {value['dtype']}, which is not known here")
    begin, end = value["data_offsets"]
    entry = TensorEntry(name, value["dtype"], tuple(value["shape"]), path, origin + begin)
    if end - begin != entry.nbytes:
        raise ValueError(f"{name} has {end - begin} bytes, its shape needs {entry.nbytes}")
    return entry


def _read_index(folder: Path, name: str) -> dict[str, str]:
    """Tensor -> file; empty without an index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(key): str(file) for key, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{name!r}: {path} is not an index of weights; copy it again") from None


def _single(folder: Path, name: str) -> str:
    if (folder / SINGLE).is_file():
        return SINGLE
    files = sorted(path.name for path in folder.glob("*.safetensors") if path.name != CURVATURE)
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(
            f"{name!r}: {folder} has {len(files)} weight files and no {INDEX}; copy the index too"
        )
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    cure = (
        f"it holds {pickled[0]}, which vlora does not open; save the model again with transformers"
        if pickled
        else "is it a model folder?"
    )
    raise CheckpointError(f"{name!r}: {folder} has no {SINGLE}: {cure}")
