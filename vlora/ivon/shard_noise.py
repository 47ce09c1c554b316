"""The noise of a part of a parameter: an entry's noise depends on its place in the whole, not on who holds it.

So a run under FSDP2 draws the same on any number of processes, and the same as one process that holds everything. A
process draws the blocks of ``NOISE_BLOCK`` entries that its part touches, and keeps its part.
"""

from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.draws import NOISE_BLOCK, block_seed, fill_standard_normal_
from vlora.ivon.shards import is_sharded

__all__ = ["fill_noise_"]


def fill_noise_(target: Tensor, param: Tensor, seed: int, generator: torch.Generator) -> None:
    """Fill ``target`` with the N(0, 1) noise of the local part of ``param``.

    Args:
        target: Tensor shaped like the local part, overwritten.
        param: The parameter, whole or a DTensor that is sharded or replicated along each dimension of its mesh.
        seed: Of the parameter's noise, from ``noise_seed``.
        generator: Any generator on the device of ``target``, reseeded.

    Raises:
        TrainingError: If the parameter is laid out in another way.
    """
    if not is_sharded(param):
        fill_standard_normal_(target, seed, generator)
    elif target.numel():
        target.copy_(_shard_noise(target, param, seed, generator))


def _shard_noise(target: Tensor, param: Any, seed: int, generator: torch.Generator) -> Tensor:
    """Noise of the rows of dimension 0 that the shard touches, cut down to the shard."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if any(type(placement) not in (Shard, Replicate) for placement in param.placements):
        raise TrainingError(
            f"IVON draws into parameters that are sharded or replicated, got placements {param.placements}: use FSDP2, "
            "also with tensor parallelism over another dimension"
        )
    shape, starts = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    if not shape:
        starts, shape = (0,), (1,)  # a scalar
    row = param.numel() // max(param.shape[0], 1) if param.dim() else 1
    first, last = starts[0] * row, (starts[0] + shape[0]) * row
    noise = _flat_noise(first, last, param.numel(), seed, generator, target)
    noise = noise.view(shape[0], *param.shape[1:]) if param.dim() else noise.view(())
    for dim in range(1, param.dim()):
        noise = noise.narrow(dim, starts[dim], shape[dim])
    return noise


def _flat_noise(
    first: int, last: int, total: int, seed: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Entries ``first`` to ``last`` of the noise of a parameter of ``total`` entries: whole blocks, then cut."""
    start = first // NOISE_BLOCK * NOISE_BLOCK
    stop = min(-(-last // NOISE_BLOCK) * NOISE_BLOCK, total)
    noise = torch.empty(stop - start, dtype=like.dtype, device=like.device)
    for number, part in enumerate(noise.split(NOISE_BLOCK), start // NOISE_BLOCK):
        part.normal_(generator=generator.manual_seed(block_seed(seed, number)))
    return noise[first - start : last - start]
