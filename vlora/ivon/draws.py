"""Seeded noise, and the averages that several draws per optimizer step leave behind.

The noise of a draw is a function of (seed, stream, draw number, parameter index) alone: it does not depend on the
global random state, on other parameters, or on how often it is asked for, so nothing but two integers is saved.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from vlora.errors import TrainingError

__all__ = ["DrawAverages", "noise_seed", "standard_normal"]


def noise_seed(seed: int, stream: str, draw: int, index: int) -> int:
    """63-bit generator seed for the noise of parameter ``index`` in draw number ``draw`` of ``stream``.

    Args:
        seed: Base seed of the run.
        stream: ``"train"`` or ``"eval"``; streams are independent, so evaluating never changes training.
        draw: Draw number within the stream.
        index: Position of the parameter over all groups of the optimizer.
    """
    key = f"ivon/{stream}/{seed}/{draw}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def standard_normal(like: Tensor, seed: int) -> Tensor:
    """N(0, 1) entries with the shape, dtype and device of ``like``, from a generator of its own."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


class DrawAverages:
    """Sums of gradients and of products over the ``sampled_params(train=True)`` contexts of one optimizer step.

    The mean gradient is published in ``p.grad``, so that clipping, ``GradScaler.unscale_`` and reductions work on
    it as they do for any optimizer. Whatever factor they put on ``p.grad`` is put on the products too.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._norms: dict[Tensor, Tensor] = {}

    def add(self, draws: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Add one draw's ``(parameter, gradient, product)`` triples; a parameter without gradient counts as zero."""
        self.count += 1
        for param, grad, product in draws:
            if param in self._sums:
                self._sums[param][0].add_(grad)
                self._sums[param][1].add_(product)
            else:
                self._sums[param] = (grad.clone(), product)

    def publish(self) -> None:
        """Set ``p.grad`` to the mean gradient over the draws so far."""
        for param, (grad_sum, _) in self._sums.items():
            param.grad = (grad_sum / self.count).to(param.dtype)
            self._norms[param] = torch.linalg.vector_norm(param.grad, dtype=grad_sum.dtype)

    def require_grads(self) -> None:
        """Refuse a step whose gradients were cleared after the last context.

        Raises:
            TrainingError: If draws were collected but no parameter has a gradient any more.
        """
        if self._sums and all(param.grad is None for param in self._sums):
            raise TrainingError(
                "expected gradients from sampled_params(train=True), but all were cleared before step(): "
                "call zero_grad() before or inside the context, not after it"
            )

    def product(self, param: Tensor, grad: Tensor, power: int) -> Tensor:
        """Mean product of ``param`` over the draws, scaled by what happened to ``p.grad`` since.

            mean_s product_s * (||grad now|| / ||grad published||)^power

        Args:
            param: A parameter.
            grad: Its final gradient (clipped, unscaled, reduced), in the dtype of the state.
            power: 1 for ``noise * grad``, 2 for ``grad^2``.

        Returns:
            A new tensor shaped like ``grad``; zeros for a parameter that no draw gave a gradient.
        """
        if param not in self._sums:
            return torch.zeros_like(grad)
        before = self._norms[param]
        ratio = torch.linalg.vector_norm(grad) / before
        ratio = torch.where(before > 0, ratio, torch.ones_like(ratio))
        return self._sums[param][1] * (ratio**power / self.count)
