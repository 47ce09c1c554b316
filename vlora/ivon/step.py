"""IVON update rule for one tensor, as pure functions: the oracle of every faster path.

Source: Shen et al. 2024, "Variational Learning is Effective for Large Deep Networks", arXiv:2402.17641, Algorithm 1.
Paper -> code: m -> mean, h -> hess, g -> grad, g-bar -> momentum, h-hat -> hess_sample, lambda -> ess,
delta -> weight_decay, xi -> clip_radius, sigma -> posterior_std.

The posterior is q(theta) = N(mean, 1 / (ess * (hess + weight_decay))), elementwise, under the prior
N(0, 1 / (ess * weight_decay)). ``hess`` estimates the diagonal Hessian of the *mean* per-example loss and
``ess`` is a number of examples. All tensors of one call share one shape; no input is modified.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "ADAM_EPS",
    "clipped_decay",
    "corrected_decay",
    "effective_lr",
    "hessian_estimate_gradsq",
    "hessian_estimate_reparam",
    "ivon_step",
    "posterior_std",
    "update_hess",
    "update_mean",
    "update_momentum",
]

ADAM_EPS = 1e-8
"""Added to the root of the second moment, as in Adam."""


def posterior_std(hess: Tensor, *, ess: float, weight_decay: float) -> Tensor:
    """Standard deviation of q(theta), in parameter units.

        std = 1 / sqrt(ess * (hess + weight_decay))

    Source: arXiv:2402.17641.

    Args:
        hess: Diagonal Hessian of the mean loss, elementwise > -weight_decay. Shape ``(*p,)``.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.

    Returns:
        Standard deviation, shape ``(*p,)``.
    """
    return torch.rsqrt(ess * (hess + weight_decay))


def hessian_estimate_reparam(noise_grad: Tensor, hess: Tensor, *, ess: float, weight_decay: float) -> Tensor:
    """Hessian of the mean loss by the reparameterisation trick (Bonnet, Price).

        f = ess * (hess + weight_decay) * mean_s(noise_s * grad_s)

    Unbiased for the diagonal of E_q[Hessian]; one draw is nearly all noise, so ``beta2`` must be close to 1.
    Source: arXiv:2402.17641.

    Args:
        noise_grad: Mean over draws of ``noise * grad``, the gradient taken at ``mean + noise``. Shape ``(*p,)``.
        hess: Hessian that the noise was drawn with. Shape ``(*p,)``.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.

    Returns:
        Estimate f, shape ``(*p,)``; may be negative.
    """
    return noise_grad * (ess * (hess + weight_decay))


def hessian_estimate_gradsq(grad_sq: Tensor, *, ess: float, grad_batch_size: float | None = None) -> Tensor:
    """Hessian of the mean loss by squared gradients (diagonal of the empirical Fisher).

        f = ess * mean_s(grad_s^2)                 published form (``grad_batch_size`` None)
        f = grad_batch_size * mean_s(grad_s^2)     scale of one example's squared gradient

    A gradient averaged over b examples has b times less variance than one of them, so near an optimum
    b * E[grad^2] is the mean squared per-example gradient. The published form equals it only when ``ess`` is b;
    with ``ess`` in the millions it overstates the Hessian by that factor.

    Args:
        grad_sq: Mean over draws of the squared mini-batch-mean gradient. Shape ``(*p,)``.
        ess: Effective sample size lambda, in examples.
        grad_batch_size: Examples averaged in one gradient (all micro-batches and processes), or None.

    Returns:
        Estimate f >= 0, shape ``(*p,)``.
    """
    return grad_sq * (ess if grad_batch_size is None else grad_batch_size)


def update_momentum(momentum: Tensor, grad: Tensor, beta1: float) -> Tensor:
    """Moving average of gradients: ``beta1 * momentum + (1 - beta1) * grad``. Shapes ``(*p,)``."""
    return beta1 * momentum + (1 - beta1) * grad


def corrected_decay(beta2: float, step: float) -> float:
    """Decay of a moving average that is its bias-corrected self at every step: its start has no weight.

        beta2_t = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)

    With it, h_t = beta2_t h_(t-1) + (1 - beta2_t) f_t equals Adam's (sum_i beta2^(t-i) f_i) / (sum_i beta2^(t-i))
    (arXiv:1412.6980, section 3), so that draws, saved posterior and step all see the same h.

    Args:
        beta2: Decay rate in [0, 1).
        step: t, 1-based number of the update.
    """
    return beta2 * (1 - beta2 ** (step - 1)) / (1 - beta2**step)


def clipped_decay(decay: float, *, clip: float, weight: float) -> float:
    """Decay of h in a step whose gradient enters the mean as ``clip * grad``.

        w_t = d w_(t-1) + (1 - d) c^2                              d the decay without clipping, c = clip
        h_t = d_t h_(t-1) + (1 - d_t) f_t,     d_t = d w_(t-1) / w_t

    So ``w_t h_t`` is the moving average of squares of *clipped* gradients, which a step of Adam divides by, and h is
    the mean of *unclipped* ones in which a step counts by c^2: h keeps the scale of the data.

    Args:
        decay: d, in [0, 1).
        clip: c, in (0, 1].
        weight: w of the step before.
    """
    kept = decay * weight
    return kept / (kept + (1 - decay) * clip**2)


def update_hess(
    hess: Tensor, hess_sample: Tensor, *, beta2: float, weight_decay: float, retraction: bool = True
) -> Tensor:
    """Moving average of the Hessian, kept above ``-weight_decay`` by a Riemannian retraction.

        h <- beta2 h + (1 - beta2) f + 0.5 (1 - beta2)^2 (h - f)^2 / (h + weight_decay)

    The last term makes ``h + weight_decay`` positive for any f, at the price of a small upward bias.
    Source: arXiv:2402.17641, Algorithm 1 (after Lin et al. 2020, arXiv:2002.10060).

    Args:
        hess: Current h, elementwise > -weight_decay. Shape ``(*p,)``.
        hess_sample: Estimate f. Shape ``(*p,)``.
        beta2: Decay rate in [0, 1).
        weight_decay: Prior precision divided by ``ess``.
        retraction: Leave False only when f >= 0, where the plain average is positive by itself.

    Returns:
        New h, shape ``(*p,)``.
    """
    average = beta2 * hess + (1 - beta2) * hess_sample
    if not retraction:
        return average
    return average + 0.5 * (1 - beta2) ** 2 * (hess - hess_sample).square() / (hess + weight_decay)


def effective_lr(lr: float, *, hess_init: float, weight_decay: float, rescale_lr: bool) -> float:
    """Learning rate on the natural-gradient scale: ``lr * (hess_init + weight_decay)`` if rescaled, else ``lr``.

    Rescaling makes ``lr`` comparable with that of SGD while h is still near its start.
    """
    return lr * (hess_init + weight_decay) if rescale_lr else lr


def update_mean(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float,
    weight_decay: float,
    clip_radius: float = math.inf,
    debias: bool = True,
    mean_step: str = "newton",
    grad_batch_size: float | None = None,
    prior_pull: bool = True,
    clip_weight: float = 1.0,
) -> Tensor:
    """Step of the mean inside an elementwise trust region.

        newton  m <- m - lr * clip((momentum / (1 - beta1^step) + weight_decay m) / (h + weight_decay), +-clip_radius)
        adam    m <- m - lr * clip(momentum / (1 - beta1^step) / (sqrt(w h / b) + 1e-8), +-clip_radius)

    Source of newton: arXiv:2402.17641, Algorithm 1. Source of adam: the square root of Adam (arXiv:1412.6980) in a
    variational method, as in Vadam (Khan et al. 2018, arXiv:1806.04854). With squared gradients on the scale of one
    example, h / b is the moving average of squared mini-batch gradients, Adam's second moment, already corrected for
    its start (``corrected_decay``), so ``lr`` is that of Adam. Deviation from Vadam: the prior does not pull the mean.

    Without ``prior_pull`` the term ``weight_decay m`` of newton is left out, as in arXiv:2506.14280: the prior then
    shapes the variance and the step's length only.

    Args:
        mean: Current m. Shape ``(*p,)``.
        momentum: Updated gradient average. Shape ``(*p,)``.
        hess: *Updated* h. Shape ``(*p,)``.
        step: 1-based number of this update, used for debiasing only.
        lr: Learning rate on the natural-gradient scale, see ``effective_lr``.
        beta1: Decay rate of ``momentum``.
        weight_decay: Prior precision divided by ``ess``.
        clip_radius: Largest preconditioned entry; no entry moves by more than ``lr * clip_radius``.
        debias: Divide the momentum by ``1 - beta1^step``.
        mean_step: ``"newton"`` or ``"adam"``.
        grad_batch_size: b, examples averaged in one gradient; needed for ``"adam"``.
        prior_pull: Pull the mean of ``"newton"`` towards the prior's.
        clip_weight: w of this step, for ``"adam"`` with clipped gradients, see ``clipped_decay``.

    Returns:
        New m, shape ``(*p,)``.
    """
    unbiased = momentum / (1 - beta1**step) if debias else momentum
    if mean_step == "newton":
        force = unbiased + weight_decay * mean if prior_pull else unbiased
        direction = force / (hess + weight_decay)
    else:
        assert grad_batch_size is not None
        direction = unbiased / ((clip_weight * hess / grad_batch_size).sqrt() + ADAM_EPS)
    return mean - lr * direction.clamp(-clip_radius, clip_radius)


def ivon_step(
    mean: Tensor,
    momentum: Tensor,
    hess: Tensor,
    grad: Tensor,
    product: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """One IVON step from gradients taken at ``mean + noise``.

    Order of Algorithm 1: momentum, then h, then the mean with the new h. Deviation: with ``grad_batch_size`` the
    estimate is non-negative and on the scale of one example, and h is its plain average without retraction.

    Args:
        mean: Current m. Shape ``(*p,)``, as all tensors here.
        momentum: Current gradient average.
        hess: Current h, the one that the noise was drawn with.
        grad: Mean over draws of the gradient of the *mean* per-example loss.
        product: Mean over draws of ``noise * grad`` ("price") or ``grad^2`` ("gradsq").
        step: 1-based number of this update.
        lr: Learning rate on the natural-gradient scale, see ``effective_lr``.
        ess: Effective sample size lambda, in examples.
        weight_decay: Prior precision divided by ``ess``.
        beta1: Decay rate of ``momentum``.
        beta2: Decay rate of ``hess``.
        clip_radius: Trust region, see ``update_mean``.
        debias: Correct the momentum for its start at zero, and for ``"adam"`` h for any start.
        hess_approx: ``"price"`` or ``"gradsq"``.
        grad_batch_size: Only for ``"gradsq"``, see ``hessian_estimate_gradsq``.
        mean_step: ``"newton"`` or ``"adam"``, see ``update_mean``.
        prior_pull: Pull the mean towards the prior's, see ``update_mean``.
        clip: Only for ``"adam"``: factor c on the gradient where it enters the momentum; None for no clipping.
        weight_before: With ``clip``: w of the step before, see ``clipped_decay``.
        clip_weight: With ``clip``: w of this step.

    Returns:
        New ``(mean, momentum, hess)``.
    """
    if hess_approx == "price":
        hess_sample = hessian_estimate_reparam(product, hess, ess=ess, weight_decay=weight_decay)
    else:
        hess_sample = hessian_estimate_gradsq(product, ess=ess, grad_batch_size=grad_batch_size)
    decay = corrected_decay(beta2, step) if mean_step == "adam" and debias else beta2
    if clip is not None:
        grad, decay = clip * grad, clipped_decay(decay, clip=clip, weight=weight_before)
    momentum = update_momentum(momentum, grad, beta1)
    hess = update_hess(
        hess, hess_sample, beta2=decay, weight_decay=weight_decay, retraction=grad_batch_size is None
    )
    mean = update_mean(
        mean, momentum, hess, step=step, lr=lr, beta1=beta1, weight_decay=weight_decay,
        clip_radius=clip_radius, debias=debias, mean_step=mean_step, grad_batch_size=grad_batch_size,
        prior_pull=prior_pull, clip_weight=clip_weight,
    )  # fmt: skip
    return mean, momentum, hess
