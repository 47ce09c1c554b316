"""The IVON step for many tensors at once, in place: the same numbers as ``vlora.ivon.step`` up to rounding.

A LoRA has hundreds of small tensors, where the cost is the number of calls rather than the arithmetic.
"""
# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["foreach_ivon_step_", "largest_entries"]


def largest_entries(tensors: list[Tensor]) -> Tensor:
    """Largest absolute entry of each tensor (NaN if it has one), float64, for tensors of one device. Shape ``(n,)``."""
    return torch.stack([norm.double() for norm in torch._foreach_norm(tensors, ord=math.inf)])


def foreach_ivon_step_(
    means: list[Tensor],
    momenta: list[Tensor],
    hesses: list[Tensor],
    grads: list[Tensor],
    products: list[Tensor],
    *,
    steps: Sequence[int],
    lr: float,
    ess: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    clip_radius: float = math.inf,
    debias: bool = True,
    hess_approx: str = "price",
    grad_batch_size: float | None = None,
    prior_pull: bool = True,
) -> None:
    """Update ``means``, ``momenta`` and ``hesses`` in place; see ``vlora.ivon.step.ivon_step`` for the algorithm.

    All tensors live on one device with one floating dtype. ``products`` is used as scratch space; ``grads`` is
    only read. Two more temporaries of the size of the parameters are made.

    Args:
        means: Current m of each parameter.
        momenta: Current gradient averages.
        hesses: Current h, as the noise was drawn with.
        grads: Mean gradients over draws.
        products: Mean over draws of ``noise * grad`` or ``grad^2``; overwritten.
        steps: 1-based update number of each parameter.
        lr: Learning rate on the natural-gradient scale.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
        beta1: Decay rate of the momenta.
        beta2: Decay rate of the Hessians.
        clip_radius: Trust region on each preconditioned entry.
        debias: Correct the momenta for their start at zero.
        hess_approx: ``"price"`` or ``"gradsq"``.
        grad_batch_size: Only for ``"gradsq"``: scale of the estimate instead of ``ess``, without retraction.
        prior_pull: Pull the means towards the prior's.
    """
    precisions = list(torch._foreach_add(hesses, weight_decay))  # precision / ess
    if hess_approx == "price":
        torch._foreach_mul_(products, precisions)
    torch._foreach_mul_(products, ess if grad_batch_size is None else grad_batch_size)
    torch._foreach_lerp_(momenta, grads, 1 - beta1)
    torch._foreach_sub_(products, hesses)  # f - h
    torch._foreach_add_(hesses, products, alpha=1 - beta2)
    if grad_batch_size is None:
        torch._foreach_mul_(products, products)
        torch._foreach_div_(products, precisions)
        torch._foreach_add_(hesses, products, alpha=0.5 * (1 - beta2) ** 2)
    debias_beta, pull = beta1 if debias else 0.0, weight_decay if prior_pull else 0.0
    _move_means_(means, momenta, hesses, precisions, steps, lr, weight_decay, pull, debias_beta, clip_radius)


def _move_means_(
    means: list[Tensor],
    momenta: list[Tensor],
    hesses: list[Tensor],
    scratch: list[Tensor],
    steps: Sequence[int],
    lr: float,
    weight_decay: float,
    pull: float,
    debias_beta: float,
    clip_radius: float,
) -> None:
    """``m -= lr * clip((momentum / (1 - debias_beta^step) + pull m) / (h + weight_decay))`` in place."""
    torch._foreach_copy_(scratch, hesses)
    torch._foreach_add_(scratch, weight_decay)
    directions = list(torch._foreach_div(momenta, [1 - debias_beta**step for step in steps]))
    torch._foreach_add_(directions, means, alpha=pull)
    torch._foreach_div_(directions, scratch)
    if math.isfinite(clip_radius):
        torch._foreach_clamp_max_(directions, clip_radius)
        torch._foreach_clamp_min_(directions, -clip_radius)
    torch._foreach_add_(means, directions, alpha=-lr)
