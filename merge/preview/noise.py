"""Where the noise of the posteriors enters a task's quadratic form: the tensors K and R of the preview model.

For dW_s = s (dB A + B dA) and curvature H = c S (x) G of the task,

    J_s^T H W_u         B part  c s_s s_u (S B_u)(A_u G A_s^T)        A part  c s_s s_u (B_s^T S B_u)(A_u G)
    (J_s^T H J_u)       BB  c s_s s_u S_ii' (A_s G A_u^T)_kk'         AA  c s_s s_u (B_s^T S B_u)_kk' G_jj'
                        BA  c s_s s_u (S B_u)_ik' (A_s G)_kj'

all of which stay thin; squares of the second kind are summed with the variances on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.grams import Gram, ShortGram
from vlora.merge.curvature.quadratic import Metric
from vlora.merge.update import LoraUpdate

__all__ = ["linear_noise", "square_noise"]


@dataclass(frozen=True)
class _Seen:
    """An update as a task's curvature sees it."""

    update: LoraUpdate
    s_b: Tensor
    """s S B."""
    a_g: Tensor
    """A G."""
    var_b: Tensor
    var_a: Tensor


def linear_noise(metric: Metric, updates: Sequence[LoraUpdate]) -> Tensor:
    """K of one task and module: K[s, u, v] = sum_p (J_s^T H W_u)_p (J_s^T H W_v)_p v_p. Shape ``(P, P, P)``."""
    seen = [_see(metric, u) for u in updates]
    rows = []
    for own in seen:
        step = metric.scale * own.update.scale
        on_b = torch.stack([step * (u.s_b @ (u.a_g @ own.update.a.mT)) for u in seen])
        on_a = torch.stack([step * ((own.update.b.mT @ u.s_b) @ u.a_g) for u in seen])
        rows.append(
            torch.einsum("uik,vik,ik->uv", on_b, on_b, own.var_b)
            + torch.einsum("ukj,vkj,kj->uv", on_a, on_a, own.var_a)
        )
    return torch.stack(rows)


def square_noise(metric: Metric, updates: Sequence[LoraUpdate]) -> Tensor:
    """R of one task and module: R[s, u] = sum_pq (J_s^T H J_u)_pq^2 v_p v_q. Shape ``(P, P)``."""
    seen = [_see(metric, u) for u in updates]
    squared = Metric(_square(metric.output), _square(metric.input), 1.0, metric.kind)
    rows = [[_pair(metric, squared, first, second) for second in seen] for first in seen]
    return torch.stack([torch.stack(row) for row in rows])


def _pair(metric: Metric, squared: Metric, first: _Seen, second: _Seen) -> Tensor:
    one, two = first.update, second.update
    both_b = (first.a_g @ two.a.mT).square() * (first.var_b.mT @ squared.from_outputs(second.var_b))
    both_a = (first.s_b.mT @ two.b).square() * (squared.from_inputs(first.var_a) @ second.var_a.mT)
    total = (two.scale * one.scale) ** 2 * both_b.sum() + two.scale**2 * both_a.sum()
    total = total + one.scale**2 * _crossed(first, second) + two.scale**2 * _crossed(second, first)
    return metric.scale**2 * total


def _crossed(first: _Seen, second: _Seen) -> Tensor:
    """B of the first against A of the second, without the first's scaling."""
    left = first.var_b.mT @ second.s_b.square()
    right = first.a_g.square() @ second.var_a.mT
    return (left * right).sum()


def _see(metric: Metric, update: LoraUpdate) -> _Seen:
    zero_b, zero_a = torch.zeros_like(update.b), torch.zeros_like(update.a)
    return _Seen(
        update,
        update.scale * metric.from_outputs(update.b),
        metric.from_inputs(update.a),
        zero_b if update.precision_b is None else update.precision_b.reciprocal(),
        zero_a if update.precision_a is None else update.precision_a.reciprocal(),
    )


def _square(matrix: Gram | None) -> Tensor | None:
    """Entry by entry; the square of a few directions and a tail has no short form."""
    if matrix is None:
        return None
    return (matrix.dense() if isinstance(matrix, ShortGram) else matrix).square()
