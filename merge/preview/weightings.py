"""Weightings of a merge: spread over a box, refined to the best by a measure, and the front that none beats.

Spread by a scrambled Sobol sequence, refined by a random search whose steps shrink; both with a fixed seed, so that
the same input gives the same answer. Losses are relative and lower is better everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.merge.preview.model import PreviewModel, Solved

__all__ = ["Family", "pareto_front", "special_weightings"]

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

    def normalised(self, weights: Tensor) -> Tensor:
        """Weights as they enter the sum. Shape ``(k, T)``."""
        return weights / weights.sum(1, keepdim=True) if self.normalise else weights

    def relative(self, weights: Tensor, solved: Solved | None = None) -> tuple[Tensor, Tensor | None]:
        """Increase per task relative to having no adapter, and its standard deviation. Shapes ``(k, T)``.

        Args:
            weights: Shape ``(k, T)``.
            solved: What is known better than by the model's reduced cores.
        """
        increase, variance = self.model.predict(self.normalised(weights), solved)
        base = self.model.without()
        return increase / base, None if variance is None else variance.clamp_min(0).sqrt() / base

    def sobol(self, count: int, seed: int) -> Tensor:
        """Evenly spread weightings. Shape ``(count, T)``."""
        engine = torch.quasirandom.SobolEngine(len(self.model.tasks), scramble=True, seed=seed)
        drawn = self.low + (self.high - self.low) * engine.draw(count, dtype=torch.float64)
        return drawn[drawn.sum(1) > 1e-6] if self.normalise else drawn

    def refine(self, weights: Tensor, objective: Callable[..., Tensor], seed: int) -> Tensor:
        """Best weighting near the best of ``weights``, inside the box."""
        generator = torch.Generator().manual_seed(seed)
        increase, width = self.relative(weights)[0], 0.2 * (self.high - self.low)
        best = weights[objective(increase, dim=1).argmin()]
        for _ in range(self.rounds):
            noise = torch.randn(self.tries, len(best), generator=generator, dtype=torch.float64)
            tries = torch.cat([best[None], (best + width * noise).clamp(self.low, self.high)])
            tries = tries[tries.sum(1) > 1e-6] if self.normalise else tries
            best = tries[objective(self.relative(tries)[0], dim=1).argmin()]
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
