"""The mode of a weighted merge whose tasks are mixtures: several posteriors (seeds) per task, one component each.

A task trained K times has the posterior q_g = sum_k pi_gk N(W_gk, S_gk^-1). A preview is the mode of
p_0 prod_g (q_g / p_0)^w_g (Monzón Maldonado et al. 2024, arXiv:2412.08147; there with uniform pi), found by majorising
-log q_g with responsibilities r, which is EM:

    r_gk = softmax_k(-f_gk(X) / T_g),                f_gk(X) = 1/2 |X - W_gk|^2_{S_gk}
    X    = C^-1 (S_0 m_0 + sum_g w_g (sum_k r_gk S_gk W_gk - S_0 m_0)),     C = S_0 + sum_g w_g (sum_k r_gk S_gk - S_0)

The second line is the merge of all adapters with weights c_gk = w_g r_gk (here m_0 = 0), so a method is given by its
losses f at such a merge and by nothing else. What falls with every step, for T_g = 1 and up to constants minus the
log of the product above, is

    F(X) = (1 - sum_g w_g) 1/2 |X|^2_{S_0} + sum_g w_g softmin_k f_gk(X)
    softmin_k f_gk = -T_g log(1/K sum_k exp(-f_gk / T_g))

Deviations: (1) the softmax has no log pi + 1/2 log |S|: pi_gk ~ |S_gk|^-1/2, the mass of a mode in Laplace's
approximation where all runs fit alike. With uniform pi the log determinants, sums over all parameters, name the
sharpest run the winner whatever X is. (2) A temperature T_g (deterministic annealing): small, one component per task
wins; infinite, r = 1/K, which is the plain average of seeds. (3) A negative weight is the component's negative at
weight |w|, as in :mod:`vlora.merge.methods.gradient_matching`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mode", "mixture_mode", "responsibilities", "soft_minimum"]

_STEPS, _STILL = 100, 1e-7
Losses = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From weights per adapter, shape ``(k, P)``, to f of every adapter (of its negative where its weight is negative) at
the merge with them, same shape, and to 1/2 |X|^2_{S_0} there, shape ``(k,)``."""


@dataclass(frozen=True)
class Mode:
    """Where the iteration ended, of all starts the lowest."""

    coefficients: Tensor
    """c, weight of every adapter in the merge. Shape ``(k, P)``."""
    objective: Tensor
    """F there. Shape ``(k,)``; lower is better."""
    steps: int
    """Steps until all starts of all weightings stood still."""


def responsibilities(losses: Tensor, temperature: float) -> Tensor:
    """Share of every component in a task, softmax(-f / T) over the last dimension; T = inf gives 1 / K."""
    return torch.softmax(-losses / temperature, -1)


def soft_minimum(losses: Tensor, temperature: float) -> Tensor:
    """-T log(mean exp(-f / T)) over the last dimension: the mean for T = inf, near the least for small T."""
    if math.isinf(temperature):
        return losses.mean(-1)
    count = math.log(losses.shape[-1])
    return -temperature * (torch.logsumexp(-losses / temperature, -1) - count)


def mixture_mode(
    losses: Losses, weights: Tensor, members: Sequence[Sequence[int]], temperatures: Sequence[float]
) -> Mode:
    """Iterate to the mode of every weighting, from the average and from every component.

    A start has one component of one task alone and the average of the others. Costs (1 + P) starts times some steps
    (few at low temperature, where responsibilities settle at once), each one call of ``losses`` per row; rows that
    stand still drop out.

    Args:
        losses: The method, see :data:`Losses`.
        weights: w, one row per weighting. Shape ``(k, T)``.
        members: Per task the numbers of its adapters; together 0 .. P - 1.
        temperatures: T_g per task, > 0, in the unit of the losses.

    Returns:
        The mode of the lowest F per weighting; with one component per task, the weights themselves.
    """
    count = sum(map(len, members))
    task = torch.zeros(count, dtype=torch.long)
    for number, own in enumerate(members):
        task[list(own)] = number
    average = torch.stack([weights.new_tensor(1.0 / len(members[g])) for g in task.tolist()])
    if all(len(own) == 1 for own in members) or all(map(math.isinf, temperatures)):
        start = average * weights[:, task]
        return Mode(start, _objective(losses, start, weights, members, temperatures)[0], 0)
    starts = [average]
    for own in members:
        for chosen in own if len(own) > 1 else ():
            starts.append(average.clone())
            starts[-1][list(own)] = 0.0
            starts[-1][chosen] = 1.0
    shares = torch.stack(starts).repeat(len(weights), 1)
    rows = weights.repeat_interleave(len(starts), 0)
    shares, values, steps = _iterate(losses, shares, rows, members, temperatures)
    values = values.view(len(weights), len(starts))
    best = values.argmin(1)
    chosen = shares.view(len(weights), len(starts), count)[torch.arange(len(weights)), best]
    return Mode(chosen * weights[:, task], values.gather(1, best[:, None])[:, 0], steps)


def _iterate(
    losses: Losses,
    shares: Tensor,
    rows: Tensor,
    members: Sequence[Sequence[int]],
    temperatures: Sequence[float],
) -> tuple[Tensor, Tensor, int]:
    """Responsibilities where they stand still, F there, and steps of the slowest row."""
    values, active, step = rows.new_zeros(len(rows)), torch.arange(len(rows)), 0
    spread = torch.zeros(len(members), shares.shape[1], dtype=rows.dtype)
    for number, own in enumerate(members):
        spread[number, list(own)] = 1.0
    while len(active) and step < _STEPS:
        step += 1
        found, f = _objective(
            losses, (rows[active] @ spread) * shares[active], rows[active], members, temperatures
        )
        values[active] = found
        new = torch.empty_like(f)
        for own, temperature in zip(members, temperatures, strict=True):
            new[:, list(own)] = responsibilities(f[:, list(own)], temperature)
        moved = (new - shares[active]).abs().amax(1) > _STILL
        shares[active] = torch.where(moved[:, None], new, shares[active])
        active = active[moved]
    return shares, values, step


def _objective(
    losses: Losses,
    coefficients: Tensor,
    weights: Tensor,
    members: Sequence[Sequence[int]],
    temperatures: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """F at the merge with these coefficients, shape ``(k,)``, and f, shape ``(k, P)``."""
    f, prior = losses(coefficients)
    total = (1.0 - weights.abs().sum(1)) * prior
    for own, temperature, weight in zip(members, temperatures, weights.abs().mT, strict=True):
        total = total + weight * soft_minimum(f[:, list(own)], temperature)
    return total, f
