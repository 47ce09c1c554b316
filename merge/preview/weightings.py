r"""Weightings of a merge: spread over a box, refined to the best by a measure, and the front that none beats.

The loss of a task is predicted to grow by a power of the model's quadratic form, relative to what it is without any
adapter: :math:`(|X - W_t|_t^2 / |W_t|_t^2)^{.6}`. At the adapter a loss is not quite at its minimum, as training stops
before that, so that a slope is left; farther away log-losses grow with logits, not with their squares. Both make the
growth slower than quadratic. The power was fitted on measured merges (``benchmarks/merge_quality``); above .5 the
average of several tasks still has its minimum between them.

Spread by a scrambled Sobol sequence, refined by a random search whose steps shrink; both with a fixed seed, so that
the same input gives the same answer. Losses are relative and lower is better everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.merge.preview.model import PreviewModel, Solved

__all__ = ["GROWTH", "Family", "pareto_front", "special_weightings"]

GROWTH = 0.6
"""Power of the quadratic form by which a loss grows."""

_SHRINK = 0.85


@dataclass(frozen=True)
class Family:
    """Scaled sums of a model's tasks with weights from a box."""

    model: PreviewModel
    normalise: bool
    low: float
    high: float
    rounds: int = 40
    """Of the local search."""
    tries: int = 128
    """Weightings per round."""
    growth: float = GROWTH
    worth: Tensor | None = None
    """What every task counts in the average, > 0: nats that its adapter is worth. Shape ``(T,)``; None: all alike."""

    def normalised(self, weights: Tensor) -> Tensor:
        """Weights as they enter the sum. Shape ``(k, T)``."""
        return weights / weights.sum(1, keepdim=True) if self.normalise else weights

    def relative(self, weights: Tensor, solved: Solved | None = None) -> tuple[Tensor, Tensor | None]:
        """Increase per task relative to having no adapter, and how much one standard deviation adds. Shapes ``(k, T)``.

        Args:
            weights: Shape ``(k, T)``.
            solved: What is known better than by the model's reduced cores.
        """
        increase, variance = self.model.predict(self.normalised(weights), solved)
        base = self.model.without()
        squared = (increase / base).clamp_min(0)
        grown = squared.pow(self.growth)
        if variance is None:
            return grown, None
        return grown, (squared + variance.clamp_min(0).sqrt() / base).pow(self.growth) - grown

    def average(self, increase: Tensor) -> Tensor:
        """Mean over the tasks by their worth. Shape ``(k,)`` of ``(k, T)``."""
        return increase.mean(-1) if self.worth is None else increase @ (self.worth / self.worth.sum())

    def sobol(self, count: int, seed: int) -> Tensor:
        """Evenly spread weightings. Shape ``(count, T)``."""
        engine = torch.quasirandom.SobolEngine(len(self.model.tasks), scramble=True, seed=seed)
        drawn = self.low + (self.high - self.low) * engine.draw(count, dtype=torch.float64)
        return drawn[drawn.sum(1) > 1e-6] if self.normalise else drawn

    def refine(self, weights: Tensor, objective: Callable[[Tensor], Tensor], seed: int) -> Tensor:
        """Best weighting near the best of ``weights``, inside the box; ``objective`` of increases ``(k, T)``."""
        generator = torch.Generator().manual_seed(seed)
        increase, width = self.relative(weights)[0], 0.2 * (self.high - self.low)
        best = weights[objective(increase).argmin()]
        for _ in range(self.rounds):
            noise = torch.randn(self.tries, len(best), generator=generator, dtype=torch.float64)
            tries = torch.cat([best[None], (best + width * noise).clamp(self.low, self.high)])
            tries = tries[tries.sum(1) > 1e-6] if self.normalise else tries
            best = tries[objective(self.relative(tries)[0]).argmin()]
            width *= _SHRINK
        return best


def special_weightings(count: int) -> Tensor:
    """All ones, the plain mean, and every task alone."""
    ones = torch.ones(1, count, dtype=torch.float64)
    return torch.cat([ones, ones / count, torch.eye(count, dtype=torch.float64)])


def pareto_front(losses: Tensor) -> list[int]:
    """Rows that no other row beats or equals in all columns and beats in one; lower is better, in order of the first.

    Args:
        losses: Shape ``(k, T)``.
    """
    order = torch.argsort(losses.sum(1), stable=True).tolist()  # whoever beats a row has a smaller sum
    front: list[int] = []
    for index in order:
        row, kept = losses[index], losses[front]
        if not ((kept <= row).all(1) & (kept < row).any(1)).any():
            front.append(index)
    return sorted(front, key=lambda index: losses[index, 0].item())
