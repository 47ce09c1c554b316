"""TIES merging: trim, elect signs, disjoint mean (Yadav et al. 2023, arXiv:2306.01708).

    1 trim      t_hat = the k % largest entries of every task vector
    2 elect     gamma = sgn(sum_t w_t t_hat_t), entry by entry
    3 merge     mean of the w_t t_hat_t whose sign is gamma;  DeltaW = scale * mean           (paper: lambda)

Notation (paper -> code): k / 100 -> ``density``, lambda -> ``scale``. Deviations: trimming is per module, not over the
whole network; an entry without a majority (sum exactly 0) gives 0, where published codes take +. Weights, which the
paper lacks, enter as sum w t / sum |w| over what agrees: an adapter of weight -w is its negative of weight w.
mergekit has this formula for positive weights; PEFT elects signs before it applies weights and divides by a count,
which is the same for weights of 1 only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.low_rank.spaces import merge_in_space
from vlora.merge.methods.sparsify import keep_largest
from vlora.merge.update import LoraUpdate, MergedModule, present

__all__ = ["elect_and_merge", "ties", "ties_merge"]


def ties(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    density: float = 0.2,
    scale: float = 1.0,
    normalise: bool = True,
    space: str = "full",
) -> MergedModule:
    """TIES merge of the updates of one module.

    Args:
        updates: Updates of one module; an adapter without it has no vote.
        weights: w_t, any sign.
        rank: ``auto``, ``keep``, a number or a share of energy; ``lossless`` in the spaces ``knots`` and ``core``.
        density: Share of entries that trimming leaves, in (0, 1]; the paper's 20 %.
        scale: lambda, factor on the result.
        normalise: Divide by the weights that agree (the paper's mean); False leaves the sum.
        space: Coordinates in which entries are compared, see :mod:`vlora.merge.low_rank.spaces`.

    Returns:
        The merged update; its report says how much energy the rank retains.
    """
    updates, weights = present(updates, weights)
    return merge_in_space(
        updates, rank, space, lambda tensors: scale * ties_merge(tensors, weights, density, normalise)
    )


def ties_merge(
    tensors: Sequence[Tensor], weights: Sequence[float], density: float, normalise: bool = True
) -> Tensor:
    """TIES on plain tensors (task vectors of one shape), without the final ``scale``."""
    return elect_and_merge([keep_largest(t, density) for t in tensors], weights, normalise)


def elect_and_merge(tensors: Sequence[Tensor], weights: Sequence[float], normalise: bool = True) -> Tensor:
    """Steps 2 and 3 on trimmed tensors: what agrees with the sign of the weighted sum, averaged or summed.

    Args:
        tensors: Task vectors of one shape.
        weights: w_t, any sign.
        normalise: Divide every entry by the sum of the absolute weights that agree there.
    """
    weighted = [w * t for w, t in zip(weights, tensors, strict=True)]
    elected = torch.stack(weighted).sum(0).sign()
    total, counted = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, tensor in zip(weights, weighted, strict=True):
        agrees = (tensor.sign() == elected) & (elected != 0)
        total += tensor * agrees
        counted += abs(weight) * agrees
    return torch.where(counted > 0, total / counted, total) if normalise else total
