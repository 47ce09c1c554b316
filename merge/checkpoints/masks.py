"""Random numbers that belong to a place in a tensor, so that neither threads nor block size change a mask.

Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key comes
from seed, content of the model and tensor, the counter from the tile. numpy's implementation is used.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["MaskSource"]


@dataclass(frozen=True)
class MaskSource:
    """Uniform numbers of one model in one tensor."""

    seed: int
    content: str
    """Hash of the model or adapter, so that neither its name nor its place in the list counts."""
    tensor: str

    def uniform(self, tile: range) -> Tensor:
        """Numbers in [0, 1) of a tile, float32; equal for equal content, tensor, seed and place."""
        digest = hashlib.sha256(f"{self.seed}\n{self.content}\n{self.tensor}".encode()).digest()
        key = np.frombuffer(digest[:16], dtype="<u8")
        # The low words of the counter run within a tile, the third is the tile's own.
        philox = np.random.Philox(key=key, counter=np.array([0, 0, tile.start, 0], dtype=np.uint64))
        return torch.from_numpy(np.random.Generator(philox).random(len(tile), dtype=np.float32))
