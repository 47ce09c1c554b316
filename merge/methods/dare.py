"""DARE: drop entries at random, rescale the rest, then merge (Yu et al. 2024, arXiv:2311.03099).

    m_t ~ Bernoulli(1 - p),   t_hat = m_t o t / (1 - p)
    dare_linear   DeltaW = scale * sum_t w_t t_hat_t                            (task arithmetic on sparse updates)
    dare_ties     DeltaW = scale * mean of the w_t t_hat_t that agree in sign   (TIES without its trim)

Notation (paper -> code): 1 - p -> ``density``, lambda -> ``scale``. The expectation of t_hat is t. Masks are seeded by
the content of each update. Applied to updates, never to factors: a product of two masked factors is not a masked update
(PEFT's ``dare_linear`` and ``dare_ties`` do that). mergekit's ``dare_ties`` sums by default, as ``normalise: false``
does.

A random mask has full rank, so at the rank of the inputs most of what DARE did is lost again: the report says how much.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.low_rank.spaces import merge_in_space
from vlora.merge.methods.sparsify import drop_random, update_mask
from vlora.merge.methods.ties import elect_and_merge
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["dare_linear", "dare_linear_merge", "dare_ties", "dare_ties_merge"]


def dare_linear(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    density: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
    space: str = "full",
) -> MergedModule:
    """Weighted sum of randomly sparsified updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign, used as given.
        rank: ``auto``, ``keep``, a number or a share of energy; ``lossless`` in the spaces ``knots`` and ``core``.
        density: Probability that an entry stays, in (0, 1].
        scale: Factor on the result.
        seed: Start of the masks; each update has its own, by its content.
        space: Coordinates whose entries are dropped, see :mod:`vlora.merge.low_rank.spaces`.
    """
    updates, weights = present(updates, weights)
    masks = [update_mask(seed, u) for u in updates]
    return merge_in_space(
        updates, rank, space, lambda tensors: scale * dare_linear_merge(tensors, weights, density, masks)
    )


def dare_ties(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    density: float = 0.5,
    scale: float = 1.0,
    normalise: bool = True,
    seed: int = 0,
    space: str = "full",
) -> MergedModule:
    """Sign election and disjoint mean of randomly sparsified updates of one module.

    Args:
        updates: Updates of one module.
        weights: w_t, any sign; see :mod:`vlora.merge.methods.ties`.
        rank: ``auto``, ``keep``, a number or a share of energy; ``lossless`` in the spaces ``knots`` and ``core``.
        density: Probability that an entry stays, in (0, 1].
        scale: Factor on the result.
        normalise: Divide by the weights that agree; False leaves the sum.
        seed: Start of the masks; each update has its own, by its content.
        space: Coordinates whose entries are dropped and compared.
    """
    updates, weights = present(updates, weights)
    masks = [update_mask(seed, u) for u in updates]
    return merge_in_space(
        updates,
        rank,
        space,
        lambda tensors: scale * dare_ties_merge(tensors, weights, density, masks, normalise),
    )


def dare_linear_merge(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """DARE with a weighted sum, on plain tensors of one shape; one generator per tensor."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight, generator in zip(tensors, weights, generators, strict=True):
        total += weight * drop_random(tensor, density, generator)
    return total


def dare_ties_merge(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generators: Sequence[torch.Generator],
    normalise: bool = True,
) -> Tensor:
    """DARE with sign election, on plain tensors of one shape; one generator per tensor."""
    sparse = [drop_random(t, density, g) for t, g in zip(tensors, generators, strict=True)]
    return elect_and_merge(sparse, weights, normalise)
