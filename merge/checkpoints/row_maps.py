"""Embeddings of different vocabularies: which row of an input is row i of the output.

A token that a model lacks has no row there. It gets the mean of the rows of the inputs that have it (which is the only
one's row where one has it), so that every method sees a row of every input: the difference between inputs at such a
token is then 0 for the inputs that lack it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlora.merge.checkpoints.headers import DTYPES, TensorEntry

__all__ = ["RowMap", "fill_missing", "read_rows"]


@dataclass(frozen=True)
class RowMap:
    """Row of the input for every row of the output, -1 where it has none."""

    rows: tuple[int, ...]

    def of(self, block: range) -> Sequence[int]:
        """Rows of the input for a block of output rows."""
        return self.rows[block.start : block.stop]


def read_rows(
    read_into: Callable[[Path, memoryview, int], None],
    entry: TensorEntry,
    rows: Sequence[int],
    target: Tensor,
) -> None:
    """Read rows of a matrix into a flat tensor, neighbours at once; missing rows are left as they are."""
    columns, width = entry.shape[-1], DTYPES[entry.dtype].itemsize
    view = target.view(torch.uint8).numpy().data
    start = 0
    while start < len(rows):
        stop = start + 1
        while rows[start] >= 0 and stop < len(rows) and rows[stop] == rows[stop - 1] + 1:
            stop += 1
        if rows[start] >= 0:
            part = view[start * columns * width : stop * columns * width]
            read_into(entry.path, part, entry.start + rows[start] * columns * width)
        start = stop


def fill_missing(raw: Sequence[Tensor], maps: Sequence[RowMap], block: range, columns: int) -> None:
    """Give every input the mean of the others' rows where it has none, in place.

    Args:
        raw: Flat block of every input.
        maps: Row map of every input; every output row is in one of them.
        block: Rows of the output.
        columns: Length of a row.
    """
    chosen = [row_map.of(block) for row_map in maps]
    for position in range(len(block)):
        have = [i for i, rows in enumerate(chosen) if rows[position] >= 0]
        if len(have) == len(raw):
            continue
        part = slice(position * columns, (position + 1) * columns)
        mean = torch.stack([raw[i][part].float() for i in have]).mean(0)
        for i, values in enumerate(raw):
            if i not in have:
                values[part] = mean.to(values.dtype)
