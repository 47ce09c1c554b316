"""SLERP: spherical linear interpolation of two updates (Shoemake 1985; for model weights as in mergekit).

    cos Omega = <W_1, W_2> / (|W_1| |W_2|),   t = w_2 / (w_1 + w_2)
    DeltaW = sin((1 - t) Omega) / sin Omega W_1 + sin(t Omega) / sin Omega W_2

Each module is one vector. Nearly parallel or opposite updates (|cos Omega| > .9995) are interpolated linearly, as there
is no arc or no unique one. The coefficients are numbers, so that the result is a weighted sum and concatenates without
loss; they come from r x r matrices. Deviation from mergekit: the arc is between updates, not between whole weights,
which are almost parallel and make SLERP a plain mean.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.low_rank.algebra import cosine, inner_product
from vlora.merge.methods.task_arithmetic import weighted_sum
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["slerp", "slerp_coefficients", "slerp_merge"]

_PARALLEL = 0.9995


def slerp(
    updates: Sequence[LoraUpdate], weights: Sequence[float], *, rank: str | float = "keep"
) -> MergedModule:
    """Spherical interpolation between the updates of one module.

    Args:
        updates: Two updates; one is returned as it is. An adapter without the module is the zero update, towards which
            interpolation is linear.
        weights: w_t > 0; only their ratio counts.
        rank: ``auto``, ``keep``, ``lossless``, a number, or a share of energy in (0, 1).

    Raises:
        ConfigError: A weight is negative.
        IncompatibleAdaptersError: There are more than two adapters.
    """
    _check(weights, updates[0].module)
    if len(updates) == 1:
        return weighted_sum(updates, [1.0], rank)
    arc = all(inner_product(u, u) > 0 for u in updates)
    return weighted_sum(updates, _coefficients(cosine(*updates) if arc else 1.0, weights), rank)


def slerp_merge(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """SLERP on two plain tensors of one shape."""
    _check(weights, "a tensor")
    first, second = (t.flatten() for t in tensors)
    product = (first.norm() * second.norm()).item()
    angle_cosine = torch.dot(first, second).item() / product if product > 0 else 1.0
    c_1, c_2 = _coefficients(angle_cosine, weights)
    return c_1 * tensors[0] + c_2 * tensors[1]


def slerp_coefficients(angle_cosine: float, t: float) -> tuple[float, float]:
    """Factors of the two ends at position t in [0, 1] of the arc; linear where the arc vanishes or is not unique."""
    if abs(angle_cosine) > _PARALLEL:
        return 1 - t, t
    angle = math.acos(angle_cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _coefficients(angle_cosine: float, weights: Sequence[float]) -> tuple[float, float]:
    return slerp_coefficients(angle_cosine, weights[1] / sum(weights))


def _check(weights: Sequence[float], where: str) -> None:
    if len(weights) > 2:
        raise IncompatibleAdaptersError(
            f"slerp interpolates between two adapters, got {len(weights)} on {where}; merge two at a time, or use "
            "method: linear"
        )
    if min(weights) < 0:
        raise ConfigError(
            f"slerp takes positive weights, got {min(weights):g} on {where}; to subtract an adapter use method: "
            "task_arithmetic"
        )
