r"""Running sums of outer products :math:`\sum_k y_k y_k^\top`: the whole matrix, or its leading directions.

The short form keeps a buffer of :math:`4k` rows. When it is full, the rows are replaced by the :math:`2k` leading
ones of their singular value decomposition (incremental SVD; like frequent directions, Ghashami et al. 2016,
arXiv:1501.01711, but without shrinking the values: the trace is summed exactly, and what a truncation drops goes into
an isotropic tail). Memory :math:`4kn` instead of :math:`n^2`.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from vlora.grams import leading

__all__ = ["FullSum", "LeadingSum", "RunningSum", "make_sum", "sum_bytes"]


class RunningSum(Protocol):
    """A sum of outer products."""

    def add(self, rows: Tensor) -> None:
        """Add the outer products of rows, shape ``(count, n)`` float32."""
        ...

    def reduce(self) -> None:
        """Sum over the processes of ``torch.distributed``; all of them must call it."""
        ...

    def result(self, key: str, normalise: bool) -> dict[str, Tensor]:
        """Tensors under ``key`` on the CPU; scaled to trace n if asked for."""
        ...


class FullSum:
    """The whole matrix, n^2 numbers, and n / 8 rows held back: adding a few at a time is bound by memory."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.total = torch.zeros(size, size, device=device)
        self.buffer = torch.empty(_held_rows(size), size, device=device)
        self.used = 0

    def add(self, rows: Tensor) -> None:
        """Add the outer products of rows, many at once."""
        if self.used + len(rows) > len(self.buffer):
            self._flush()
        if len(rows) > len(self.buffer):
            self.total.addmm_(rows.T, rows)
            return
        self.buffer[self.used : self.used + len(rows)] = rows
        self.used += len(rows)

    def reduce(self) -> None:
        """Sum over all processes."""
        self._flush()
        dist.all_reduce(self.total)

    def result(self, key: str, normalise: bool) -> dict[str, Tensor]:
        """The symmetric matrix."""
        self._flush()
        gram = (self.total + self.total.T) / 2
        return {key: (gram * _scale(gram.trace(), len(gram), normalise)).cpu()}

    def _flush(self) -> None:
        rows, self.used = self.buffer[: self.used], 0
        self.total.addmm_(rows.T, rows)


class LeadingSum:
    """The k leading directions and the trace, 4 k n numbers."""

    def __init__(self, size: int, rank: int, device: torch.device) -> None:
        self.rank, self.used = rank, 0
        self.buffer = torch.zeros(4 * rank, size, device=device)
        self.trace = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add the outer products of rows, a piece at a time."""
        self.trace += rows.square().sum(dtype=torch.float64)
        while len(rows):
            if self.used == len(self.buffer):
                self._compress(2 * self.rank)
            count = min(len(rows), len(self.buffer) - self.used)
            self.buffer[self.used : self.used + count] = rows[:count]
            self.used, rows = self.used + count, rows[count:]

    def reduce(self) -> None:
        """Gather the leading rows of all processes and sum the traces."""
        self._compress(2 * self.rank)
        parts = [torch.empty_like(self.buffer) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, self.buffer)
        dist.all_reduce(self.trace)
        whole, self.used = self.trace.clone(), 0
        self.buffer.zero_()
        for part in parts:
            self.add(part[: 2 * self.rank])
        self.trace = whole

    def result(self, key: str, normalise: bool) -> dict[str, Tensor]:
        """The short form of :mod:`vlora.grams`."""
        self._compress(self.rank)
        rows, size = self.buffer[: self.rank], self.buffer.shape[1]
        values = rows.square().sum(1)
        vectors = rows.T / values.sqrt().clamp_min(torch.finfo(values.dtype).tiny)
        scale = _scale(self.trace, size, normalise)
        found = leading(key, vectors, (scale * values).float(), (scale * self.trace).float())
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _compress(self, keep: int) -> None:
        """Rotate the rows to principal axes, largest first, and keep some; through their small Gram matrix."""
        values, vectors = torch.linalg.eigh((self.buffer @ self.buffer.T).double())
        kept = vectors[:, -keep:].flip(1).to(self.buffer.dtype).T @ self.buffer
        kept[values[-keep:].flip(0) <= 1e-7 * values[-1]] = 0  # rounding, no direction
        self.buffer.zero_()
        self.buffer[:keep], self.used = kept, keep


def make_sum(size: int, rank: int | None, device: torch.device) -> RunningSum:
    """The whole matrix, or its leading directions where that is the smaller one."""
    return FullSum(size, device) if rank is None or 4 * rank >= size else LeadingSum(size, rank, device)


def sum_bytes(size: int, rank: int | None) -> tuple[int, int]:
    """Bytes while gathering and bytes stored, of one matrix in float32."""
    if rank is None or 4 * rank >= size:
        return 4 * size * (size + _held_rows(size)), 4 * size * size
    return 16 * rank * size, 4 * (rank * size + rank + 1)


def _held_rows(size: int) -> int:
    return max(1, size // 8)


def _scale(trace: Tensor, size: int, normalise: bool) -> float:
    value = trace.item()
    return size / value if normalise and value > 0 else 1.0
