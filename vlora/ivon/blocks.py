"""Cutting lists of tensors into blocks of bounded size, which bounds temporaries and keeps them in the cache.

A block is either several small tensors or a slice of one large tensor; slices are views, so writing to them writes to
the tensor. Everything IVON does is elementwise, so no number depends on where the cuts are.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["BLOCK_ENTRIES", "block_entries", "blocks"]

BLOCK_ENTRIES = 2**16
"""Entries of a block on a CPU: few enough for the operands of a step to stay in its caches."""

DEVICE_BLOCK_ENTRIES = 2**24
"""Entries of a block on other devices, where a call costs more than the cache saves."""


def block_entries(device: torch.device) -> int:
    """Largest number of entries of a block on ``device``."""
    return BLOCK_ENTRIES if device.type == "cpu" else DEVICE_BLOCK_ENTRIES


def blocks(
    columns: Sequence[Sequence[Tensor]], limit: int, *, cut: bool = True
) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Cut parallel lists of tensors into blocks of at most ``limit`` entries.

    Args:
        columns: Lists of equal length; tensors at the same position have the same shape.
        limit: Largest number of entries of a block, >= 1. A larger tensor is cut into slices of its flat entries,
            or, if it is not contiguous in every column, makes a block of its own.
        cut: False leaves large tensors whole: each makes a block of its own.

    Yields:
        Positions of the tensors of the block, and for each column the tensors or the one slice.
    """
    rows: list[int] = []
    size = 0
    for i, tensor in enumerate(columns[0]):
        entries = tensor.numel()
        if rows and size + entries > limit:
            yield rows, [[column[j] for j in rows] for column in columns]
            rows, size = [], 0
        if cut and entries > limit and all(column[i].is_contiguous() for column in columns):
            flat = [column[i].view(-1).split(limit) for column in columns]
            for part in zip(*flat, strict=True):
                yield [i], [[piece] for piece in part]
        else:
            rows.append(i)
            size += entries
    if rows:
        yield rows, [[column[j] for j in rows] for column in columns]
