"""Which entries of an update a sparse merge keeps: the largest, random ones, or random ones that favour the large.

======================  ==================================================================================
``keep_largest``        trim step of TIES (Yadav et al. 2023, arXiv:2306.01708)
``drop_random``         drop and rescale, DARE (Yu et al. 2024, arXiv:2311.03099)
``drop_by_magnitude``   MAGPRUNE, the drop step of DELLA (Deep et al. 2024, arXiv:2406.11617)
======================  ==================================================================================

``density`` is the (expected) share of entries that stay, 1 - p in the papers. Masks come from a generator per tensor,
seeded by the content of the update and the name of the module (:func:`update_mask`), so that neither names nor order of
the adapters change them. Equal updates have equal masks: an adapter that is listed twice counts as one adapter with the
sum of the weights, as in a merge without masks.
"""

import hashlib

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.merge.update import LoraUpdate

__all__ = [
    "drop_by_magnitude",
    "drop_random",
    "keep_by_magnitude",
    "keep_largest",
    "keep_random",
    "mask_generator",
    "update_mask",
]


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The tensor with all but its ``density * numel`` largest magnitudes set to zero (at least one stays).

    The threshold is found by selection, without a sort. Entries equal to the smallest that is kept stay as well.

    Args:
        tensor: Any shape.
        density: Share of entries that stay, in (0, 1].
    """
    count = max(1, int(density * tensor.numel()))
    if count >= tensor.numel():
        return tensor
    magnitude = tensor.abs()
    threshold = magnitude.flatten().kthvalue(tensor.numel() - count + 1).values
    return tensor * (magnitude >= threshold)


def drop_random(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep every entry with probability ``density`` and divide it by that, so that the expectation stays.

    Args:
        tensor: Any shape.
        density: Probability of staying, in (0, 1].
        generator: Source of the mask.
    """
    return keep_random(tensor, density, _uniform(tensor, generator))


def keep_random(tensor: Tensor, density: float, uniform: Tensor) -> Tensor:
    """:func:`drop_random` with given numbers in [0, 1), of the shape of the tensor."""
    return tensor * (uniform < density) / density


def drop_by_magnitude(tensor: Tensor, density: float, epsilon: float, generator: torch.Generator) -> Tensor:
    """Keep entries with a probability that falls with their rank of magnitude in their row; rescale each by its own.

        p_i = p_min + epsilon rank_i / (n - 1),   p_min = 1 - density - epsilon / 2,   kept entries / (1 - p_i)

    where rank 0 is the largest magnitude of the row. Deviation: n - 1 instead of n, so that the window is symmetric
    around the density and the expected share of kept entries is exactly ``density``. ``epsilon = 0`` is
    :func:`drop_random`, with the same mask.

    Args:
        tensor: Shape ``(..., n)``; the last dimension is a row.
        density: Mean probability of staying, in (0, 1].
        epsilon: Width of the window of probabilities, >= 0.
        generator: Source of the mask.

    Raises:
        ConfigError: The window leaves (0, 1].
    """
    return keep_by_magnitude(tensor, density, epsilon, _uniform(tensor, generator))


def keep_by_magnitude(tensor: Tensor, density: float, epsilon: float, uniform: Tensor) -> Tensor:
    """:func:`drop_by_magnitude` with given numbers in [0, 1), of the shape of the tensor."""
    low, high = density - epsilon / 2, density + epsilon / 2
    if low <= 0 or high > 1:
        raise ConfigError(
            f"density {density:g} with epsilon {epsilon:g} gives probabilities from {low:g} to {high:g}, expected "
            "(0, 1]; lower epsilon"
        )
    order = tensor.abs().argsort(dim=-1, descending=True, stable=True)
    steps = torch.linspace(high, low, tensor.shape[-1], dtype=tensor.dtype, device=tensor.device)
    keep = torch.empty_like(tensor).scatter_(-1, order, steps.expand_as(tensor))
    return tensor * (uniform < keep) / keep


def update_mask(seed: int, update: LoraUpdate) -> torch.Generator:
    """Generator of the mask of one adapter in one module, by the values of its update s B A and nothing else.

    Args:
        seed: Start of all masks.
        update: The update; its name does not count, nor how s is split between the scaling and B.
    """
    digest = hashlib.sha256()
    for factor in (update.scale * update.b, update.a):
        stored = factor.detach().to("cpu", torch.float64) + 0.0  # -0 and 0 are one value
        digest.update(f"{tuple(stored.shape)}|".encode())
        digest.update(stored.contiguous().numpy().tobytes())
    return mask_generator(seed, digest.hexdigest(), update.module)


def mask_generator(seed: int, content: str, module: str) -> torch.Generator:
    """Generator of the mask of one adapter in one module.

    Args:
        seed: Start of all masks.
        content: Hash of what is masked.
        module: Name of the module.
    """
    digest = hashlib.sha256(f"{seed}\n{content}\n{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _uniform(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), drawn on the CPU so that they are the same for every device and dtype."""
    return torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.device)
