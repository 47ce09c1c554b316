"""The IVON step and draw for many tensors at once, in place: the numbers of ``vlora.ivon.step`` up to rounding.

A LoRA has hundreds of small tensors, where the cost is the number of calls rather than the arithmetic; a large tensor
costs what it moves through memory. So the functions here take lists, use as few operations as the algorithm allows,
and are meant for the bounded lists of ``vlora.ivon.blocks``: every temporary is of the size of the list.

Rounding: the draw is bitwise that of the reference; the step orders its scalar factors differently (``1 - beta1^step``
goes into the learning rate and the trust region) and is equal within a few units in the last place of each operand.
"""
# pyright: reportPrivateImportUsage=false

import math

import torch
from torch import Tensor

__all__ = ["all_norms_finite", "foreach_draw_", "foreach_ivon_step_", "foreach_product"]


def all_norms_finite(tensors: list[Tensor]) -> Tensor:
    """Whether each tensor is finite, as far as its Euclidean norm in float32 tells. Bool, shape ``(n,)``.

    True is certain; False also means a norm that overflowed. All tensors are on one device.
    """
    norms = torch._foreach_norm(tensors, 2)
    return torch.stack([norm.float() for norm in norms]).isfinite()


def foreach_draw_(
    noises: list[Tensor], means: list[Tensor], hesses: list[Tensor], *, ess: float, weight_decay: float
) -> None:
    """Turn N(0, 1) noise into posterior draws, in place: ``noise <- noise / sqrt(ess * (h + weight_decay)) + mean``.

    Args:
        noises: Standard normal noise of each parameter, overwritten by the draw.
        means: m of each parameter.
        hesses: h of each parameter.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
    """
    stds = list(torch._foreach_add(hesses, weight_decay))
    torch._foreach_mul_(stds, ess)
    torch._foreach_rsqrt_(stds)
    torch._foreach_mul_(noises, stds)
    torch._foreach_add_(noises, means)


def foreach_product(
    params: list[Tensor], means: list[Tensor], grads: list[Tensor], *, gradsq: bool
) -> list[Tensor]:
    """What the estimate of h needs from one draw: new tensors in the dtype of the means.

        (param - mean) * grad     the realised noise, after rounding to the parameter's dtype
        grad^2                    if ``gradsq``

    Args:
        params: Parameters, which hold the draw.
        means: m of each parameter.
        grads: Gradients at the draw, in the dtype of the means.
        gradsq: Which of the two.
    """
    if gradsq:
        return list(torch._foreach_mul(grads, grads))
    if params[0].dtype != means[0].dtype:
        params = [param.to(mean.dtype) for param, mean in zip(params, means, strict=True)]
    products = list(torch._foreach_sub(params, means))
    torch._foreach_mul_(products, grads)
    return products


def foreach_ivon_step_(
    means: list[Tensor],
    momenta: list[Tensor],
    hesses: list[Tensor],
    grads: list[Tensor],
    products: list[Tensor],
    *,
    step: int,
    lr: float,
    ess: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    clip_radius: float = math.inf,
    debias: bool = True,
    hess_approx: str = "price",
    grad_batch_size: float | None = None,
) -> None:
    """Update ``means``, ``momenta`` and ``hesses`` in place; see ``vlora.ivon.step.ivon_step`` for the algorithm.

    All tensors live on one device with one floating dtype. ``grads`` and ``products`` are only read. At most two
    temporaries of the size of the list exist at a time.

    Args:
        means: Current m of each parameter.
        momenta: Current gradient averages.
        hesses: Current h, as the noise was drawn with.
        grads: Mean gradients over draws.
        products: Mean over draws of ``noise * grad`` or ``grad^2``.
        step: 1-based update number, the same for all.
        lr: Learning rate on the natural-gradient scale.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
        beta1: Decay rate of the momenta.
        beta2: Decay rate of the Hessians.
        clip_radius: Trust region on each preconditioned entry.
        debias: Correct the momenta for their start at zero.
        hess_approx: ``"price"`` or ``"gradsq"``.
        grad_batch_size: Only for ``"gradsq"``: scale of the estimate instead of ``ess``, without retraction.
    """
    scale = ess if grad_batch_size is None else grad_batch_size
    _update_hesses_(
        hesses, products, scale, weight_decay, 1 - beta2, hess_approx == "price", grad_batch_size is None
    )
    torch._foreach_lerp_(momenta, grads, 1 - beta1)
    bias = 1 - beta1**step if debias else 1.0
    _move_means_(means, momenta, hesses, bias, lr, weight_decay, clip_radius)


def _update_hesses_(
    hesses: list[Tensor],
    products: list[Tensor],
    scale: float,
    weight_decay: float,
    rate: float,
    price: bool,
    retraction: bool,
) -> None:
    """``h += rate (f - h) + rate^2 / 2 (f - h)^2 / (h + weight_decay)`` with ``f = scale (h + weight_decay) product``.

    Without ``price`` the estimate is ``f = scale product``; without ``retraction`` the last term is left out.
    """
    if not (price or retraction):
        torch._foreach_mul_(hesses, 1 - rate)
        torch._foreach_add_(hesses, products, alpha=rate * scale)
        return
    precisions = list(torch._foreach_add(hesses, weight_decay))  # precision / ess
    if price:
        changes = list(torch._foreach_addcmul(hesses, precisions, products, -scale))  # h - f
    else:
        changes = list(torch._foreach_add(hesses, products, alpha=-scale))
    torch._foreach_add_(hesses, changes, alpha=-rate)
    torch._foreach_mul_(changes, changes)
    torch._foreach_addcdiv_(hesses, changes, precisions, 0.5 * rate**2)


def _move_means_(
    means: list[Tensor],
    momenta: list[Tensor],
    hesses: list[Tensor],
    bias: float,
    lr: float,
    weight_decay: float,
    clip_radius: float,
) -> None:
    """``m -= lr * clip((momentum / bias + weight_decay m) / (h + weight_decay), +-clip_radius)`` in place.

    Computed as ``m -= (lr / bias) * clip((momentum + bias weight_decay m) / (h + weight_decay), +-bias clip_radius)``.
    """
    precisions = torch._foreach_add(hesses, weight_decay) if weight_decay else hesses
    forces = torch._foreach_add(momenta, means, alpha=bias * weight_decay) if weight_decay else momenta
    if not math.isfinite(clip_radius):
        torch._foreach_addcdiv_(means, forces, precisions, -lr / bias)
        return
    directions = list(torch._foreach_div(forces, precisions))
    torch._foreach_clamp_max_(directions, bias * clip_radius)
    torch._foreach_clamp_min_(directions, -bias * clip_radius)
    torch._foreach_add_(means, directions, alpha=-lr / bias)
