"""How a tensor is cut: tiles for arithmetic, blocks of tiles for reading and writing.

A tile is a fixed range of entries that depends on the shape alone, never on block size or threads. Every rule works
tile by tile, and everything random or summed belongs to a tile, so that any block size and any number of threads give
the same bytes. Every operation on a tile has a fixed cost, at which threads pass the interpreter's lock, so a tile is
larger than a core's cache (``benchmarks/merge_io``, table of tiles).
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["TILE", "Tiling"]

TILE = 2**19
"""Entries of a tile (at most; a longer row is one tile where rows must stay whole)."""


@dataclass(frozen=True)
class Tiling:
    """The tiles of one tensor."""

    numel: int
    tile: int
    """Entries of every tile but the last."""

    @classmethod
    def of(cls, shape: tuple[int, ...], by_rows: bool, entries: int = TILE) -> "Tiling":
        """Tiles of a shape, of about so many entries; ``by_rows`` keeps rows (the last dimension) whole."""
        numel = 1
        for size in shape:
            numel *= size
        columns = shape[-1] if shape else 1
        return cls(numel, columns * max(1, entries // max(1, columns)) if by_rows else entries)

    @property
    def count(self) -> int:
        """Number of tiles."""
        return -(-self.numel // max(1, self.tile))

    def blocks(self, entries: int) -> Iterator[range]:
        """Ranges of entries of at most ``entries`` (but at least one tile), each a whole number of tiles."""
        step = max(1, entries // self.tile) * self.tile
        for start in range(0, self.numel, step):
            yield range(start, min(start + step, self.numel))

    def tiles(self, block: range) -> Iterator[range]:
        """Tiles of a block."""
        for start in range(block.start, block.stop, self.tile):
            yield range(start, min(start + self.tile, block.stop))
