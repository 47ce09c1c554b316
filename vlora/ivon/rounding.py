"""Draws in a number format that is coarser than the posterior: spacing, stochastic rounding, and what is lost.

A bfloat16 parameter of size 1 can only take values 2^-7 apart. Noise much smaller than that is swallowed: the draw
rounds back to the mean. Rounding at random, up or down in proportion to the distance, keeps the noise on average;
either way the noise that the loss sees is wider than the posterior's by the error of rounding:

    Var[parameter - mean] = std^2 + spacing^2 / 12     rounded to nearest, std above half a spacing
                          = std^2 + spacing^2 / 6      stochastic rounding

Price's estimate of h divides by the variance of the noise, so it must be this one, see :func:`rounding_correction`.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlora.ivon.low_precision import read_state
from vlora.ivon.noise import controlled
from vlora.ivon.shards import local, local_state
from vlora.ivon.step import posterior_std

__all__ = [
    "NoiseCheck",
    "is_coarse",
    "realised_product",
    "rounding_correction",
    "rounding_seed",
    "spacing",
    "stochastic_round",
]

_SMALLEST = -100
"""Exponent below which spacings stay constant, so that none is subnormal in float32."""


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of ``dtype`` at ``|values|``: ``eps * 2^floor(log2 |value|)``.

    Args:
        values: Float32 or float64, any shape.
        dtype: Floating-point format.

    Returns:
        Spacing in the dtype and shape of ``values``; below the smallest normal number that of the subnormal ones.
    """
    info = torch.finfo(dtype)
    least = max(int(math.log2(info.smallest_normal)), _SMALLEST)
    exponent = (
        torch.frexp(values.abs().clamp_min_(2.0**least)).exponent - 1
    )  # frexp's mantissa is in [0.5, 1)
    return torch.ldexp(torch.full_like(values, info.eps), exponent)


def is_coarse(param: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the parameter is less precise than its state."""
    return param.dtype != state["mean"].dtype


def rounding_seed(seed: int) -> int:
    """Generator seed for the rounding of a draw whose noise has the generator seed ``seed``."""
    digest = hashlib.blake2b(f"ivon/rounding/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stochastic_round(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Round up or down at random, so that the mean over seeds is the value itself.

        spacing * floor(value / spacing + u)        u uniform in [0, 1)

    Args:
        values: Float32 or float64, any shape.
        dtype: Coarser floating-point format. Beyond its largest number values become that number.
        seed: Of a generator of its own.

    Returns:
        Values that ``dtype`` represents exactly, in ``dtype``.
    """
    generator = torch.Generator(device=values.device).manual_seed(seed)
    uniform = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
    grid = spacing(values, dtype)
    largest = torch.finfo(dtype).max
    return uniform.add_(values / grid).floor_().mul_(grid).clamp_(-largest, largest).to(dtype)


def rounding_correction(
    mean: Tensor, hess: Tensor, dtype: torch.dtype, *, ess: float, weight_decay: float, stochastic: bool
) -> Tensor:
    """Factor that makes Price's estimate from realised noise unbiased: intended over realised variance.

        1 / (1 + c spacing(mean)^2 ess (hess + weight_decay))        c = 1/6 stochastic, 1/12 to nearest

    Own derivation: for a quadratic loss E[noise * grad] = Var[noise] * H for any noise of mean zero that does not
    depend on H, rounding included, and a rounding error that is uniform in its cell has the variances above. Without
    the factor h of a bfloat16 parameter is too large by 8 % (nearest) or 17 % (stochastic) where std is one spacing.

    Args:
        mean: Exact mean. Shape ``(*p,)``.
        hess: h that the noise was drawn with. Shape ``(*p,)``.
        dtype: Dtype of the parameter.
        ess: Effective sample size.
        weight_decay: Prior precision divided by ``ess``.
        stochastic: Whether the draw was rounded stochastically.

    Returns:
        Factor in (0, 1], shape ``(*p,)``.
    """
    added = spacing(mean, dtype).square_().mul_(1 / 6 if stochastic else 1 / 12)
    return added.mul_(ess * (hess + weight_decay)).add_(1).reciprocal_()


def realised_product(
    param: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], grad: Tensor
) -> Tensor:
    """``noise * grad`` of a draw that was rounded to a coarser dtype, scaled so that Price's estimate is unbiased.

        (param - mean) * grad * rounding_correction

    Args:
        param: Parameter, which holds the draw.
        state: Its state.
        group: Its parameter group.
        grad: Gradient at the draw, in the dtype of the mean.

    Returns:
        New tensor in the dtype of the mean.
    """
    factor = rounding_correction(
        state["mean"],
        read_state(state, "hess"),
        param.dtype,
        ess=group["ess"],
        weight_decay=group["weight_decay"],
        stochastic=group["stochastic_rounding"],
    )
    return (param.detach().to(grad.dtype) - state["mean"]).mul_(grad).mul_(factor)


class NoiseCheck:
    """Warns once when the parameters' number format swallows the posterior's noise.

    Looks at draws number 0, 1, 2, 4, 8, …, since a posterior narrows as it learns, and not at all at parameters that
    are as precise as their state. Where ``noise_cost`` sets the width, draws start next to the mean and widen: those of
    the first half of ``noise_warmup`` are let pass, or the first ``GROWTH`` if there is none.
    """

    GROWTH = 32

    LARGEST_SHARE = 0.5
    """Share of entries whose draw may equal the rounded mean."""
    SMALLEST_RATIO = 0.4
    """std / spacing below which stochastic rounding adds more variance than the posterior has."""

    def __init__(self) -> None:
        self._seen, self._warned = -1, False

    @torch.no_grad()
    def look(self, groups: list[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Examine the draw that the parameters hold, if it is due.

        Args:
            groups: Parameter groups, whose ``sampled`` positions hold draw number ``draw``.
            state: State of the optimizer.
        """
        draw = groups[0]["draw"]
        if self._warned or draw == self._seen or draw & (draw - 1):
            return
        self._seen = draw
        held = [
            (group, group["params"][i]) for group in groups if _has_grown(group) for i in group["sampled"]
        ]
        coarse = [
            (group, param) for group, param in held if is_coarse(param, state[param]) and local(param).numel()
        ]
        if not coarse:
            return
        lost = [_lost(group, local(param), local_state(state[param])) for group, param in coarse]
        total = sum(local(param).numel() for _, param in coarse)
        share = sum(float(swallowed) for swallowed, _ in lost) / total
        small = sum(float(below) for _, below in lost) / total
        self._judge(share, small, coarse[0])

    def _judge(self, share: float, small: float, example: tuple[dict[str, Any], Tensor]) -> None:
        """Warn if the noise is swallowed, or drowned in the noise of rounding."""
        group, param = example
        name = str(param.dtype).removeprefix("torch.")
        narrow = f"std is below {self.SMALLEST_RATIO} of the format's spacing for {small:.0%}"
        wider = "raise init_std and max_std" if controlled(group) else "lower ess"
        if group["stochastic_rounding"] and small > 0.5:
            message = (
                f"stochastic rounding to {name} makes draws wider than the posterior: {narrow} of the entries; keep "
                f"the adapter in float32, or {wider}"
            )
        elif not group["stochastic_rounding"] and share > self.LARGEST_SHARE:
            message = (
                f"{name} swallows the posterior's noise: {share:.0%} of the entries of this draw round back to the "
                f"mean ({narrow}); keep the adapter in float32, {wider}, or pass stochastic_rounding=True"
            )
        else:
            return
        self._warned = True
        warnings.warn(message, stacklevel=5)


def _has_grown(group: Mapping[str, Any]) -> bool:
    """Whether the width of a group's draws tells what that of the posterior will be."""
    growth = group["noise_warmup"] / 2 if group["noise_warmup"] else NoiseCheck.GROWTH
    return not controlled(group) or group["noise_steps"] >= growth


def _lost(group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """How many entries hold the rounded mean, and for how many std is small against the spacing."""
    mean = state["mean"]
    std = posterior_std(read_state(state, "hess"), ess=group["ess"], weight_decay=group["weight_decay"])
    below = std < NoiseCheck.SMALLEST_RATIO * spacing(mean, param.dtype)
    return (param == mean.to(param.dtype)).sum(), below.sum()
