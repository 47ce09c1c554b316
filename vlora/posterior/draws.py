"""Numbered standard-normal draws: draw k of a tensor is the same on every machine, in any order, on any device.

NumPy's Philox counter generator is keyed by a hash of (seed, draw, tensor name), so no draw depends on which
others were made before it, on the device, or on global random state.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

__all__ = ["standard_normal"]


def standard_normal(shape: torch.Size, *, seed: int, draw: int, name: str) -> Tensor:
    """Standard-normal numbers of one tensor in one posterior draw.

    Args:
        shape: Shape of the tensor.
        seed: Seed of the posterior.
        draw: Number of the draw, 0, 1, 2, …
        name: Key of the tensor.

    Returns:
        float32 CPU tensor of ``shape``.
    """
    digest = hashlib.sha256(f"vlora-draw/1/{seed}/{draw}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32).reshape(tuple(shape)))
