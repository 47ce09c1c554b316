"""Flat blocks of bounded size from lists of tensors: few calls for many small tensors, few cache misses for large ones.

A block is a slice of one large tensor, or several small tensors as one vector: as they lie where they are neighbours
in memory, as ``empty_together`` makes IVON's state, else gathered and put back afterwards. Everything IVON does
is elementwise, so no number depends on where the cuts are.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

__all__ = ["BLOCK_ENTRIES", "Room", "block_entries", "empty_together", "flat_blocks", "row_groups"]

BLOCK_ENTRIES = 2**17
"""Entries of a block on a CPU: few enough for the operands of a step to stay in its caches."""

DEVICE_BLOCK_ENTRIES = 2**22
"""Entries of a block on other devices, where a call costs more than the cache saves."""

ALONE_PART = 4
"""A tensor with more entries than a block divided by this is worked on alone."""


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


def empty_together(likes: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Uninitialised tensors, the small ones next to one another in memory, in their order.

    Args:
        likes: Tensors whose shapes to use, all on one device.
        dtype: Dtype of the new tensors.
    """
    if not likes:
        return []
    device, limit = likes[0].device, block_entries(likes[0].device)
    small = [like for like in likes if like.numel() * ALONE_PART <= limit]
    memory = torch.empty(sum(like.numel() for like in small), dtype=dtype, device=device)
    parts = iter(_unflatten_dense_tensors(memory, small) if small else ())
    return [
        next(parts)
        if like.numel() * ALONE_PART <= limit
        else torch.empty(like.shape, dtype=dtype, device=device)
        for like in likes
    ]


class Room:
    """Memory for one vector after the other, because memory fresh from the system is slower than the arithmetic."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def vector(self, like: Tensor, entries: int) -> Tensor:
        """Uninitialised vector with the dtype and device of ``like``; it takes the place of the one before."""
        if self._memory is None or self._memory.numel() < entries:
            self._memory = torch.empty(entries, dtype=like.dtype, device=like.device)
        return self._memory[:entries]

    def shaped(self, likes: Sequence[Tensor]) -> list[Tensor]:
        """The vector cut into tensors of given shapes; dtype and device are those of the first."""
        memory = self.vector(likes[0], sum(like.numel() for like in likes))
        return list(_unflatten_dense_tensors(memory, likes))


def flat_blocks(columns: Sequence[Sequence[Tensor]], limit: int, writes: int) -> Iterator[list[Tensor]]:
    """Parallel lists of tensors as vectors of at most ``limit`` entries, to be worked on in place.

    Whatever the caller writes into the first ``writes`` vectors of a block is in the tensors when the next block is
    asked for. The other vectors are only to be read. No gradient is recorded; call it under ``torch.no_grad``.

    Args:
        columns: Lists of equal length; tensors at the same position have the same shape.
        limit: Largest number of entries of a block. Larger tensors are cut.
        writes: How many columns the caller writes to.

    Yields:
        One vector for each column: views where possible, else gathered copies, gone with the next block.
    """
    rooms = [Room() for _ in columns]
    for rows in row_groups(columns[0], limit):
        members = [[column[i] for i in rows] for column in columns]
        ends = list(accumulate(member.numel() for member in members[0]))
        views = [_as_vector(some, ends) for some in members]
        vectors = [
            _gathered(some, room.vector(some[0], ends[-1])) if view is None else view
            for some, view, room in zip(members, views, rooms, strict=True)
        ]
        # one piece, but for a large tensor
        yield from map(list, zip(*(vector.split(limit) for vector in vectors), strict=True))
        for some, view, vector in zip(members[:writes], views, vectors, strict=False):
            if view is None:
                torch._foreach_copy_(some, list(_unflatten_dense_tensors(vector, some)))


def _as_vector(tensors: Sequence[Tensor], ends: Sequence[int]) -> Tensor | None:
    """A flat view of tensors that follow one another in one piece of memory; None if they do not.

    Args:
        tensors: Tensors of one dtype.
        ends: Their entries, summed up.
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first.view(-1) if first.is_contiguous() else None
    size, start = first.element_size(), first.data_ptr()
    storage = first.untyped_storage()
    if start + size * ends[-1] > storage.data_ptr() + storage.nbytes():
        return None
    for tensor, end in zip(tensors[1:], ends, strict=False):
        if tensor.numel() and (tensor.data_ptr() != start + size * end or not tensor.is_contiguous()):
            return None
    return first.as_strided((ends[-1],), (1,)) if first.is_contiguous() else None


def _gathered(tensors: Sequence[Tensor], out: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)
