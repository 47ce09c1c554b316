r"""Empirical Bayes: the prior precision of every tensor, learned with its posterior.

The prior of tensor i with P entries is N(0, 1/p). Only the Kullback-Leibler term of the objective

    ess E_q[mean loss] + KL(q || N(0, 1/p)),      KL = 1/2 ( p E_q|theta|^2 - P log p ) + terms without p

depends on p, at any temperature, and its minimum over p is in closed form (derived here; Graves 2011 does the same for
all weights together, arXiv:2506.14280 for LoRA matrices):

    p* = P / E_q|theta|^2 = P / ( |m|^2 + sum_j v_j ),      v_j = 1 / (ess (h_j + delta)),      delta* = p* / ess

Alternating it with the posterior's own update is expectation maximisation: for a Gaussian likelihood with independent
parameters the fixed point is the p of largest evidence. A tensor that the data does not need (m at zero) has no
finite optimum: delta then grows by h with every update and its posterior shrinks onto zero.

Paper -> code: delta -> weight_decay, lambda -> ess, m -> mean, v -> variance, P -> numel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PRIORS", "bounded_weight_decay", "empirical_bayes_precision", "split_group", "update_priors"]

PRIORS = ("fixed", "empirical_bayes")

_MOST_SHRINKAGE = 0.1  # of the least certain entry's precision in one update


def empirical_bayes_precision(mean: Tensor, variance: Tensor) -> float:
    """Prior precision with the smallest KL divergence from the posterior, ``P / (|m|^2 + sum v)``.

    Args:
        mean: Posterior mean m. Shape ``(*p,)``.
        variance: Posterior variances v, same shape.

    Returns:
        p*, in 1/parameter^2. The prior N(0, 1/p*) has the posterior's mean square.
    """
    energy = mean.double().square().sum() + variance.double().sum()
    return mean.numel() / float(energy)


def bounded_weight_decay(proposed: float, *, hess: Tensor, weight_decay: float) -> float:
    """The proposed weight decay, or as much of the way down as keeps every ``h + weight_decay`` positive.

    Price estimates of h go below zero, down to ``-weight_decay``. One update takes no entry's precision below a tenth
    of what it was; with h >= 0 this is never in the way of the fixed point.

    Args:
        proposed: New prior precision over ``ess``.
        hess: Current h.
        weight_decay: Current prior precision over ``ess``.
    """
    least = float(hess.min())
    return max(proposed, _MOST_SHRINKAGE * (least + weight_decay) - least)


def split_group(group: dict[str, Any]) -> list[dict[str, Any]]:
    """One group per tensor, in their order, because every tensor has its own prior; draws do not change by it."""
    if isinstance(group["params"], set):  # has no order; torch refuses it by name
        return [group]
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    return [{**group, "params": [param]} for param in params] or [group]


@torch.no_grad()
def update_priors(groups: Sequence[dict[str, Any]], describe: Callable[[Tensor], dict[str, Any]]) -> None:
    """Set the weight decay of every group that learns its prior and whose turn it is.

    Args:
        groups: Parameter groups, changed in place.
        describe: ``IVON.posterior_state``.
    """
    for group in groups:
        if group["prior"] != "empirical_bayes" or not group["params"]:
            continue
        (param,) = group["params"]
        if param.grad is None or param.numel() == 0:
            continue
        found = describe(param)
        if found["step"] % group["prior_update_every"]:
            continue
        hess, ess, decay = found["hess"], found["ess"], found["weight_decay"]
        precision = empirical_bayes_precision(found["mean"], 1 / (ess * (hess + decay)))
        group["weight_decay"] = bounded_weight_decay(precision / ess, hess=hess, weight_decay=decay)
