"""DELLA: drop by magnitude, elect, fuse (Deep et al. 2024, arXiv:2406.11617).

    1 drop     MAGPRUNE: the drop probability of an entry falls with its magnitude within its row
    2 elect    gamma = sgn(sum_t w_t t_hat_t), entry by entry
    3 fuse     DeltaW = scale * mean of the w_t t_hat_t whose sign is gamma

Notation (paper -> code): 1 - p -> ``density``, epsilon -> ``epsilon``, lambda -> ``scale``. ``epsilon: 0`` is
``dare_ties``. mergekit spreads the probabilities over twice the window (density - epsilon to density + epsilon) and
sums by default.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.low_rank.spaces import merge_in_space
from vlora.merge.methods.sparsify import drop_by_magnitude, update_mask
from vlora.merge.methods.ties import elect_and_merge
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["della", "della_merge"]


def della(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    density: float = 0.5,
    epsilon: float = 0.2,
    scale: float = 1.0,
    normalise: bool = True,
    seed: int = 0,
    space: str = "full",
) -> MergedModule:
    """DELLA merge of the updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign; see :mod:`vlora.merge.methods.ties`.
        rank: ``auto``, ``keep``, a number or a share of energy; ``lossless`` in the spaces ``knots`` and ``core``.
        density: Mean probability that an entry stays, in (0, 1].
        epsilon: Width of the window of probabilities around ``density``, >= 0.
        scale: Factor on the result.
        normalise: Divide by the weights that agree; False leaves the sum.
        seed: Start of the masks; each update has its own, by its content.
        space: Coordinates whose entries are dropped and compared, see :mod:`vlora.merge.low_rank.spaces`.

    Raises:
        ConfigError: The window of probabilities leaves (0, 1].
    """
    updates, weights = present(updates, weights)
    masks = [update_mask(seed, u) for u in updates]
    return merge_in_space(
        updates,
        rank,
        space,
        lambda tensors: scale * della_merge(tensors, weights, density, epsilon, masks, normalise),
    )


def della_merge(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    epsilon: float,
    generators: Sequence[torch.Generator],
    normalise: bool = True,
) -> Tensor:
    """DELLA on plain tensors of one shape ``(..., n)``; one generator per tensor."""
    sparse = [drop_by_magnitude(t, density, epsilon, g) for t, g in zip(tensors, generators, strict=True)]
    return elect_and_merge(sparse, weights, normalise)
