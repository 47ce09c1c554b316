"""Tasks of several seeds in a preview: weights per adapter at the mode of the mixture, and its losses there.

The mode is found in the metric of the merge itself (what :func:`surrogate` gives), the losses of the tasks are then
predicted in the metric of the preview (:mod:`vlora.merge.preview.model`), where a task's loss is the soft minimum over
its members' instead of their mean. Temperatures are relative: 1 is what a task's adapters are worth, its loss without
any, so that .01 lets a member count as soon as it is not much more than 1 % of that worse than the best.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.merge.preview.mode import Losses, mixture_mode, responsibilities, soft_minimum
from vlora.merge.preview.reduced import ReducedCore

__all__ = ["member_weights", "one_of_each", "over_members", "surrogate"]


def surrogate(plain: Tensor, cores: Sequence[ReducedCore], tau: float) -> Losses:
    """Losses that the merge minimises: 1/2 |X - W_s|^2 under S_s = G_s + tau I, or tau I in modules that are summed.

    Args:
        plain: <W_u, W_v> over the modules that are summed. Shape ``(P, P)``.
        cores: Modules of gradient matching.
        tau: Prior precision.
    """

    def losses(coefficients: Tensor) -> tuple[Tensor, Tensor]:
        sign = torch.where(coefficients.signbit(), -1.0, 1.0)
        pulled = coefficients @ plain
        prior = 0.5 * tau * (coefficients * pulled).sum(-1)
        total = prior.unsqueeze(-1) - tau * sign * pulled + 0.5 * tau * plain.diagonal()
        for core in cores:
            own, absent = core.matched(coefficients[:, core.adapters])
            every = absent.unsqueeze(-1).expand_as(total).clone()  # who is absent has W = 0 and G = 0 there
            every[:, core.adapters] = own
            total, prior = total + every, prior + absent
        return total, prior

    return losses


def member_weights(
    losses: Losses, weights: Tensor, members: Sequence[Sequence[int]], temperature: float
) -> Tensor:
    """Weight of every adapter at the mode. Shape ``(k, P)``.

    Args:
        losses: Of :func:`surrogate`.
        weights: One row per weighting. Shape ``(k, T)``.
        members: Per task, numbers of its adapters.
        temperature: Relative, see above.
    """
    alone = losses(weights.new_zeros(1, sum(map(len, members))))[0][0]
    worth = [alone[list(own)].mean().item() for own in members]
    limits = [temperature * w if w > 0 else math.inf for w in worth]
    return mixture_mode(losses, weights, members, limits).coefficients


def over_members(
    means: Tensor, variances: Tensor | None, worth: float, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Loss of a task from its members', and its variance.

    Args:
        means: Loss increase per member. Shape ``(K, k)``.
        variances: Their variances, same shape, or None.
        worth: Mean increase without any adapter.
        temperature: Relative; inf takes the mean over members.

    Returns:
        The soft minimum, and the variance of the mixture that weighs members by their responsibilities; ``(k,)``.
    """
    limit = temperature * worth if worth > 0 else math.inf
    loss = soft_minimum(means.mT, limit)
    if variances is None:
        return loss, None
    share = responsibilities(means.mT, limit).mT
    spread = (share * (means - (share * means).sum(0)).square()).sum(0)
    return loss, (share * variances).sum(0) + spread


def one_of_each(members: Sequence[Sequence[int]], count: int) -> list[list[float]]:
    """Weights with one member per task, the k-th of each: where a cold mixture ends.

    Args:
        members: Per task, numbers of its adapters.
        count: Number of adapters.
    """
    longest = max(map(len, members))
    chosen = [{own[k % len(own)] for own in members} for k in range(longest)] if longest > 1 else []
    return [[1.0 if i in one else 0.0 for i in range(count)] for one in chosen]
