"""The IVON draw and step on vectors, in place: the numbers of ``vlora.ivon.step`` with fewer passes over memory.

They are given the blocks of ``vlora.ivon.blocks``, so that a temporary has the size of a block. Rounding: the draw is
bitwise that of the reference; the step orders its scalar factors differently and agrees within a few units in the
last place of each operand. With ``bias = 1 - beta1^step`` its last line is

    m <- m - (lr / bias) clip((momentum + bias weight_decay m) / (h + weight_decay), +-bias clip_radius)
"""
# pyright: reportPrivateImportUsage=false

import math

import torch
from torch import Tensor

from vlora.ivon.step import ADAM_EPS, clipped_decay, corrected_decay

__all__ = ["draw_", "gradient_norms", "ivon_step_", "make_scratch", "product_of_draw"]


def gradient_norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, float64, shape ``(n,)``; all on one device.

    A finite norm means finite entries; one that is not finite may only have overflowed.
    """
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return torch.stack(list(torch._foreach_norm(tensors, 2, dtype=wide))).double()


def make_scratch(like: Tensor, limit: int) -> Tensor:
    """Room for the temporaries of a block: reused, because memory fresh from the system is slower than the arithmetic.

    Args:
        like: Tensor with the dtype and device of the state.
        limit: Largest number of entries of a block.

    Returns:
        Uninitialised, shape ``(3, limit)``.
    """
    return torch.empty(3, limit, dtype=like.dtype, device=like.device)


def draw_(
    noise: Tensor, mean: Tensor, hess: Tensor, scratch: Tensor, *, ess: float, weight_decay: float
) -> None:
    """Turn N(0, 1) noise into a posterior draw, in place: ``noise <- noise / sqrt(ess * (h + weight_decay)) + mean``.

    Args:
        noise: Standard normal noise, overwritten by the draw. Shape ``(n,)``.
        mean: Current m. Shape ``(n,)``.
        hess: Current h. Shape ``(n,)``.
        scratch: From ``make_scratch``, at least n wide.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
    """
    std = torch.add(hess, weight_decay, out=scratch[0, : hess.numel()])
    noise.mul_(std.mul_(ess).rsqrt_()).add_(mean)


def product_of_draw(
    param: Tensor, mean: Tensor, grad: Tensor, *, gradsq: bool, out: Tensor | None = None
) -> Tensor:
    """What the estimate of h needs from one draw, in the dtype of the mean.

        (param - mean) * grad     the realised noise, after rounding to the parameter's dtype
        grad^2                    if ``gradsq``

    Args:
        param: Parameter, which holds the draw.
        mean: Current m, of the parameter's dtype or a wider one.
        grad: Gradient at the draw, in the dtype of the mean.
        gradsq: Which of the two.
        out: Where to put it; None for a new tensor.
    """
    if gradsq:
        return torch.mul(grad, grad, out=out)
    return torch.sub(param, mean, out=out).mul_(grad)


def ivon_step_(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    product: Tensor,
    scratch: Tensor,
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
    mean_step: str = "newton",
    prior_pull: bool = True,
    clip: float | None = None,
    weight_before: float = 1.0,
    clip_weight: float = 1.0,
) -> None:
    """Update ``mean``, ``momentum`` and ``hess`` in place; see ``vlora.ivon.step.ivon_step`` for the algorithm.

    Args:
        mean: Current m. Shape ``(n,)``, as all tensors here; one dtype.
        momentum: Current gradient average.
        hess: Current h, as the noise was drawn with.
        grad: Mean gradient over draws; only read.
        product: Mean over draws of ``noise * grad`` or ``grad^2``; only read. May be the last row of ``scratch``.
        scratch: From ``make_scratch``, at least n wide; its first two rows are overwritten.
        step: 1-based update number.
        lr: Learning rate on the natural-gradient scale.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
        beta1: Decay rate of the momentum.
        beta2: Decay rate of h.
        clip_radius: Trust region on each preconditioned entry.
        debias: Correct the momentum for its start at zero, and for ``"adam"`` h for any start.
        hess_approx: ``"price"`` or ``"gradsq"``.
        grad_batch_size: Only for ``"gradsq"``: scale of the estimate instead of ``ess``, without retraction.
        mean_step: ``"newton"`` or ``"adam"``.
        prior_pull: Pull the mean towards the prior's; False leaves ``weight_decay m`` out.
        clip: Factor on the gradient where it enters the momentum; None for no clipping.
        weight_before: With ``clip``: w of the step before.
        clip_weight: With ``clip``: w of this step.
    """
    first, second, _ = scratch[:, : mean.numel()]
    if grad_batch_size is None:
        precision = torch.add(hess, weight_decay, out=first)  # divided by ess
        if hess_approx == "price":
            change = torch.addcmul(hess, precision, product, value=-ess, out=second)  # h - f
        else:
            change = torch.add(hess, product, alpha=-ess, out=second)
        hess.sub_(change, alpha=1 - beta2)
        hess.addcdiv_(change.square_(), precision, value=0.5 * (1 - beta2) ** 2)
    else:
        keep = corrected_decay(beta2, step) if mean_step == "adam" and debias else beta2
        if clip is not None:
            keep = clipped_decay(keep, clip=clip, weight=weight_before)
        hess.mul_(keep).add_(product, alpha=(1 - keep) * grad_batch_size)
    if clip is None:
        momentum.lerp_(grad, 1 - beta1)
    else:
        momentum.mul_(beta1).add_(grad, alpha=(1 - beta1) * clip)
    bias = 1 - beta1**step if debias else 1.0
    force = momentum
    if mean_step == "newton":
        divisor = torch.add(hess, weight_decay, out=first)
        pull = bias * weight_decay if prior_pull else 0.0
        if pull:
            force = torch.add(momentum, mean, alpha=pull, out=second)
    else:
        assert grad_batch_size is not None
        divisor = torch.mul(hess, clip_weight / grad_batch_size, out=first).sqrt_().add_(ADAM_EPS)
    if math.isfinite(clip_radius):
        direction = torch.div(force, divisor, out=first).clamp_(-bias * clip_radius, bias * clip_radius)
        mean.sub_(direction, alpha=lr / bias)
    else:
        mean.addcdiv_(force, divisor, value=-lr / bias)
