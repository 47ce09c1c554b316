"""Reading the inputs of one output tensor, block by block into buffers that are used again.

Files are read with ``pread`` at known offsets, so threads share descriptors without locks and nothing is mapped:
resident memory is the buffers, whatever the size of the tensors.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.headers import DTYPES, TensorEntry
from vlora.merge.checkpoints.row_maps import RowMap, fill_missing, read_rows
from vlora.merge.checkpoints.tiles import Tiling

if TYPE_CHECKING:
    from vlora.merge.checkpoints.case import Case
    from vlora.merge.checkpoints.rules import Rule

__all__ = ["Buffers", "Files", "TensorJob", "TensorStream"]


@dataclass(frozen=True)
class TensorJob:
    """One tensor of the output: what it is made of, and how."""

    name: str
    dtype: str
    """Of the output, as in headers."""
    shape: tuple[int, ...]
    inputs: tuple[TensorEntry, ...]
    """In the order that the rule expects."""
    rule: "Rule"
    row_maps: tuple[RowMap, ...] | None = None
    """Per input, for embeddings of different vocabularies: which of its rows is row i of the output."""
    case: "Case | None" = None
    """What the rule was chosen for; None where no method of several models made it."""

    @property
    def tiling(self) -> Tiling:
        """Tiles of the output; the same for all inputs."""
        return Tiling.of(self.shape, self.rule.by_rows or self.row_maps is not None, self.rule.tile_entries)

    @property
    def bytes_read(self) -> int:
        """Bytes that the passes of the rule read, samples left out."""
        return self.rule.bytes_read(self.inputs)


class Files:
    """Open input files, shared by all threads."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read_into(self, path: Path, target: memoryview, offset: int) -> None:
        """Fill ``target`` from a place in a file.

        Raises:
            CheckpointError: The file ends before, or cannot be read.
        """
        try:
            descriptor = self._descriptor(path)
            done = 0
            while done < len(target):
                count = os.preadv(descriptor, [target[done:]], offset + done)
                if count == 0:
                    raise CheckpointError(f"{path} became shorter while it was read; copy it again")
                done += count
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
            return self._open[path]


@dataclass
class Buffers:
    """Memory of one worker: grows to the largest block it meets, is never given back."""

    slots: dict[str, Tensor] = field(default_factory=dict)

    def get(self, slot: str, numel: int, dtype: torch.dtype) -> Tensor:
        """A flat, uninitialised tensor in a slot; what was there before is lost."""
        nbytes = numel * dtype.itemsize
        held = self.slots.get(slot)
        if held is None or held.numel() < nbytes:
            held = self.slots[slot] = torch.empty(nbytes, dtype=torch.uint8)
        return held[:nbytes].view(dtype)


class TensorStream:
    """The inputs of one job, as tiles in float32."""

    def __init__(self, job: TensorJob, files: Files, buffers: Buffers, block_bytes: int) -> None:
        self.job, self.tiling = job, job.tiling
        self._files, self._buffers = files, buffers
        widest = max(
            (DTYPES[entry.dtype].itemsize for entry in job.inputs), default=DTYPES[job.dtype].itemsize
        )
        self._entries = max(1, block_bytes // widest)

    def blocks(self) -> Iterator[range]:
        """Ranges of entries to read at once."""
        return self.tiling.blocks(self._entries)

    def passes(self, inputs: Sequence[int] | None = None) -> Iterator[tuple[range, list[Tensor]]]:
        """All tiles of one reading pass: place, and one float32 tensor per input, which may be overwritten.

        Args:
            inputs: Numbers of the inputs to read; all of them if None.
        """
        for block in self.blocks():
            yield from self.tiles(block, inputs)

    def tiles(
        self, block: range, inputs: Sequence[int] | None = None
    ) -> Iterator[tuple[range, list[Tensor]]]:
        """Tiles of one block, after reading it; ``inputs`` as for :meth:`passes`."""
        raw = self.raw(block, inputs)
        for tile in self.tiling.tiles(block):
            part = slice(tile.start - block.start, tile.stop - block.start)
            yield tile, [self._float(i, values[part]) for i, values in enumerate(raw)]

    def raw(self, block: range, inputs: Sequence[int] | None = None) -> list[Tensor]:
        """One block of the inputs, in their own dtype; ``inputs`` as for :meth:`passes`."""
        wanted = range(len(self.job.inputs)) if inputs is None else inputs
        raw = [self._read(i, self.job.inputs[i], block) for i in wanted]
        if self.job.row_maps is not None:
            maps = [self.job.row_maps[i] for i in wanted]
            fill_missing(raw, maps, self._rows(block), self.job.shape[-1])
        return raw

    def whole(self, entry: TensorEntry) -> Tensor:
        """A tensor beside the inputs, such as a Gram, in its own dtype and memory of its own."""
        values = torch.empty(entry.numel, dtype=DTYPES[entry.dtype])
        self._files.read_into(entry.path, values.view(torch.uint8).numpy().data, entry.start)
        return values.view(entry.shape)

    def sample(self, pieces: int, length: int) -> list[Tensor]:
        """Entries of every input in float32 from ``pieces`` evenly spaced places; the whole tensor if it is small."""
        numel = self.tiling.numel
        if self.job.row_maps is not None or numel <= 2 * pieces * length:
            return [torch.cat(found) for found in zip(*self._copies(), strict=True)]
        starts = [(numel - length) * k // (pieces - 1) for k in range(pieces)]
        return [
            torch.cat([self._read(i, entry, range(s, s + length)).float() for s in starts])
            for i, entry in enumerate(self.job.inputs)
        ]

    def _copies(self) -> Iterator[Sequence[Tensor]]:
        for _, values in self.passes():
            yield [value.clone() for value in values]

    def _float(self, index: int, values: Tensor) -> Tensor:
        return self._buffers.get(f"tile {index}", values.numel(), torch.float32).copy_(values)

    def _read(self, index: int, entry: TensorEntry, block: range) -> Tensor:
        dtype = DTYPES[entry.dtype]
        values = self._buffers.get(f"input {index}", len(block), dtype)
        if self.job.row_maps is None:
            view = values.view(torch.uint8).numpy().data
            self._files.read_into(entry.path, view, entry.start + block.start * dtype.itemsize)
        else:
            rows = self.job.row_maps[index].of(self._rows(block))
            read_rows(self._files.read_into, entry, rows, values)
        return values

    def _rows(self, block: range) -> range:
        columns = self.job.shape[-1]
        return range(block.start // columns, block.stop // columns)
