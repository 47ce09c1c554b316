"""Flat blocks of bounded size from lists of tensors: few calls for many small tensors, few cache misses for large ones.

A block is a slice of one large tensor, or several small tensors gathered into one vector and put back afterwards.
Everything IVON does is elementwise, so no number depends on where the cuts are.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

__all__ = ["BLOCK_ENTRIES", "block_entries", "flat_blocks", "row_groups"]

BLOCK_ENTRIES = 2**17
"""Entries of a block on a CPU: few enough for the operands of a step to stay in its caches."""

DEVICE_BLOCK_ENTRIES = 2**22
"""Entries of a block on other devices, where a call costs more than the cache saves."""

ALONE_PART = 16
"""A tensor with more entries than a block divided by this is not worth gathering."""


def block_entries(device: torch.device) -> int:
    """Largest number of entries of a block on ``device``."""
    return BLOCK_ENTRIES if device.type == "cpu" else DEVICE_BLOCK_ENTRIES


def row_groups(tensors: Sequence[Tensor], limit: int) -> list[list[int]]:
    """Indices of tensors that are to be worked on together: small ones in groups, large ones alone.

    Args:
        tensors: Tensors of any shape.
        limit: Largest number of entries of a group of several tensors, >= 1.
    """
    groups: list[list[int]] = []
    small: list[int] = []
    size = 0
    for i, tensor in enumerate(tensors):
        entries = tensor.numel()
        if entries * ALONE_PART > limit:
            groups.append([i])
            continue
        if size + entries > limit:
            groups.append(small)
            small, size = [], 0
        small.append(i)
        size += entries
    return [*groups, small] if small else groups


def flat_blocks(columns: Sequence[Sequence[Tensor]], limit: int, writes: int) -> Iterator[list[Tensor]]:
    """Parallel lists of tensors as vectors of at most ``limit`` entries, to be worked on in place.

    Whatever the caller writes into the first ``writes`` vectors of a block is in the tensors when the next block is
    asked for. The other vectors are only to be read. No gradient is recorded; call it under ``torch.no_grad``.

    Args:
        columns: Lists of equal length; tensors at the same position have the same shape.
        limit: Largest number of entries of a block. Larger tensors are cut.
        writes: How many columns the caller writes to.

    Yields:
        One vector for each column: views where possible, else gathered copies.
    """
    for rows in row_groups(columns[0], limit):
        members = [[column[i] for i in rows] for column in columns]
        if len(rows) == 1 and all(member.is_contiguous() for (member,) in members):
            pieces = [member.view(-1).split(limit) for (member,) in members]
            yield from map(list, zip(*pieces, strict=True))
            continue
        vectors = [_flatten_dense_tensors(some) for some in members]
        pieces = [
            vector.split(limit) for vector in vectors
        ]  # one, but for a large tensor that has no flat view
        yield from map(list, zip(*pieces, strict=True))
        for some, vector in zip(members[:writes], vectors, strict=False):
            torch._foreach_copy_(some, list(_unflatten_dense_tensors(vector, some)))
