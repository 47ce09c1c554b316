"""Adapters on tiles of their base: W + L R, with L R = s B A in the layout of the stored weight.

A linear layer stores W as (outputs, inputs): L = s B, R = A. Conv1D (GPT-2) and embeddings store its transpose:
L = A^T, R = s B^T. Rows of a tile need the same rows of L and all of R, which is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.merge.checkpoints.case import Case
from vlora.merge.checkpoints.rules import Rule

if TYPE_CHECKING:
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["AddLowRank", "AddVector", "Dora", "LowRank", "OnUpdates", "Replace", "ReplaceRows"]


@dataclass(frozen=True)
class LowRank:
    """An update L R of a stored matrix."""

    left: Tensor
    """Shape ``(rows, r)``, float32."""
    right: Tensor
    """Shape ``(r, columns)``, float32."""

    @classmethod
    def of(cls, b: Tensor, a: Tensor, scale: float, transposed: bool) -> "LowRank":
        """Factors of s B A, or of its transpose."""
        scaled = (b.double() * scale).float()
        left, right = (a.float().mT, scaled.mT) if transposed else (scaled, a.float())
        return cls(left.contiguous(), right.contiguous())

    @property
    def nbytes(self) -> int:
        """Of both factors."""
        return self.left.nbytes + self.right.nbytes

    def add_to(self, place: range, tile: Tensor) -> Tensor:
        """Add the entries of a tile, in place; returns it as rows."""
        columns = self.right.shape[1]
        rows = tile.view(-1, columns)
        return rows.addmm_(self.left[place.start // columns : place.stop // columns], self.right)


def _weight(start: Tensor | None, place: range, values: list[Tensor]) -> Tensor:
    """A tile of the weight that an update is added to: the base's, or the one that an adapter brings."""
    if start is None:
        return values[0]
    return start.flatten()[place.start : place.stop].to(torch.float32, copy=True)


def _own(start: Tensor | None) -> int:
    return 0 if start is None else start.nbytes


@dataclass
class AddLowRank(Rule):
    """W + sum of updates."""

    updates: Sequence[LowRank]
    start: Tensor | None = None
    """W, where the adapter brings its own."""
    by_rows: bool = field(default=True)

    def kept(self) -> int:
        """The factors, and a weight of the adapter's own."""
        return sum(update.nbytes for update in self.updates) + _own(self.start)

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The rows of a tile."""
        tile = _weight(self.start, place, values)
        for update in self.updates:
            update.add_to(place, tile)
        return tile


@dataclass
class Dora(Rule):
    """m (W + s B A) / |W + s B A|, the norm over the inputs of every output (Liu et al. 2024, arXiv:2402.09353)."""

    update: LowRank
    magnitude: Tensor
    """m, one entry per output, float32."""
    transposed: bool
    """Whether outputs are columns of the stored weight, so that norms need a pass of their own."""
    start: Tensor | None = None
    """W, where the adapter brings its own."""
    by_rows: bool = field(default=True)
    passes: int = 1

    def __post_init__(self) -> None:
        """Count the pass over the columns."""
        self.passes = 2 if self.transposed else 1

    def kept(self) -> int:
        """The factors, the magnitudes, and a weight of the adapter's own."""
        return self.update.nbytes + self.magnitude.nbytes + _own(self.start)

    def prepare(self, stream: "TensorStream") -> Tensor | None:
        """Factors m / norm of the columns, if outputs are columns."""
        if not self.transposed:
            return None
        squares = torch.zeros(self.magnitude.numel(), dtype=torch.float64)
        for place, values in stream.passes():
            squares += self._updated(place, values).double().square().sum(0)
        return (self.magnitude.double() / squares.sqrt()).float()

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The rescaled rows."""
        rows = self._updated(place, values)
        if self.transposed:
            return rows.mul_(known).view(-1)
        columns = self.update.right.shape[1]
        magnitude = self.magnitude[place.start // columns : place.stop // columns]
        return rows.mul_((magnitude / torch.linalg.vector_norm(rows, dim=1))[:, None]).view(-1)

    def _updated(self, place: range, values: list[Tensor]) -> Tensor:
        return self.update.add_to(place, _weight(self.start, place, values))


@dataclass
class AddVector(Rule):
    """A bias of the base plus one of the adapter (``lora_bias``), scaled."""

    vector: Tensor

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The sum."""
        return values[0].add_(self.vector[place.start : place.stop])


@dataclass
class Replace(Rule):
    """A tensor that an adapter trained whole (``modules_to_save``, biases)."""

    value: Tensor
    passes: int = 0

    def kept(self) -> int:
        """The tensor."""
        return self.value.nbytes

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """Its entries."""
        return self.value.flatten()[place.start : place.stop].float()


@dataclass
class ReplaceRows(Rule):
    """Rows of an embedding that an adapter trained as they are (``trainable_token_indices``)."""

    indices: Sequence[int]
    values: Tensor
    """Shape ``(len(indices), columns)``."""
    by_rows: bool = field(default=True)

    def kept(self) -> int:
        """The rows."""
        return self.values.nbytes

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The base's rows, and the trained ones in their places."""
        columns = self.values.shape[1]
        rows, first = values[0].view(-1, columns), place.start // columns
        for index, value in zip(self.indices, self.values, strict=True):
            if 0 <= index - first < len(rows):
                rows[index - first] = value.float()
        return values[0]


@dataclass
class OnUpdates(Rule):
    """An element-wise method on the dense updates of adapters, whose result needs no rank: W + method(L_1 R_1, ...).

    The method is told that the base is 0 and that the models are the updates.
    """

    method: Rule
    updates: Sequence[LowRank]
    case: Case | None = None
    """What the method was chosen for."""
    by_rows: bool = field(default=True)

    def __post_init__(self) -> None:
        """Take over what the method needs."""
        self.passes = self.method.passes
        self.tiles = self.method.tiles + 2 * len(self.updates) + 1

    def kept(self) -> int:
        """The factors."""
        return sum(update.nbytes for update in self.updates)

    def prepare(self, stream: "TensorStream") -> Any:
        """What the method must know about the updates."""
        return self.method.prepare(_UpdateStream(stream, self))  # type: ignore[arg-type]

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The merged update on the base."""
        return self.method.tile(place, self.expand(place), known).add_(values[0])

    def expand(self, place: range) -> list[Tensor]:
        """Zeros and one tile per update."""
        tiles = [torch.zeros(len(place)) for _ in range(len(self.updates) + 1)]
        for update, tile in zip(self.updates, tiles[1:], strict=True):
            update.add_to(place, tile)
        return tiles


class _UpdateStream:
    """The dense updates of a job, in place of its inputs."""

    def __init__(self, stream: "TensorStream", rule: OnUpdates) -> None:
        self.tiling, self._stream, self._rule = stream.tiling, stream, rule

    def passes(self) -> Any:
        """All tiles; nothing is read."""
        for block in self._stream.blocks():
            for place in self.tiling.tiles(block):
                yield place, self._rule.expand(place)

    def sample(self, pieces: int, length: int) -> list[Tensor]:
        """Evenly spaced rows of every update, or all of a small one."""
        rows, columns = self._rule.updates[0].left.shape[0], self._rule.updates[0].right.shape[1]
        wanted = min(rows, max(2, pieces * length // columns))
        if rows * columns <= 2 * pieces * length:
            wanted = rows
        chosen = torch.linspace(0, rows - 1, wanted).long()
        found = [(update.left[chosen] @ update.right).flatten() for update in self._rule.updates]
        return [torch.zeros_like(found[0]), *found]
