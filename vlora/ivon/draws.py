"""Seeded noise, and the averages that several draws per optimizer step leave behind.

The noise of a draw is a function of (seed, stream, draw number, parameter index) alone: it does not depend on the
global random state, on other parameters, or on how often it is asked for, so nothing but two integers is saved.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.noise import NoiseTally
from vlora.ivon.shards import local, set_grad

__all__ = [
    "NOISE_BLOCK",
    "DrawAverages",
    "block_seed",
    "fill_standard_normal_",
    "noise_seed",
    "standard_normal",
]

NOISE_BLOCK = 2**18
"""Entries of a parameter whose noise comes from one generator seed."""


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


def block_seed(seed: int, block: int) -> int:
    """Generator seed of one block of ``NOISE_BLOCK`` entries of a parameter; block 0 has the parameter's own."""
    if block == 0:
        return seed
    digest = hashlib.blake2b(f"ivon/block/{seed}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fill_standard_normal_(target: Tensor, seed: int, generator: torch.Generator | None = None) -> None:
    """Fill ``target`` with N(0, 1) noise in place; block b of its flat entries has a generator seed of its own.

    So a process that holds a part of a parameter can draw just the blocks it needs; blocks are short at the end of
    the parameter only. Memory: none but for targets that are not contiguous.

    Args:
        target: Tensor to fill, a whole parameter.
        seed: From ``noise_seed``.
        generator: Any generator on the device of ``target``, reseeded; it saves making one.
    """
    generator = torch.Generator(device=target.device) if generator is None else generator
    if not target.is_contiguous():
        target.copy_(standard_normal(target, seed))
        return
    if target.numel() <= NOISE_BLOCK:
        target.normal_(generator=generator.manual_seed(seed))
        return
    for block, part in enumerate(target.view(-1).split(NOISE_BLOCK)):
        part.normal_(generator=generator.manual_seed(block_seed(seed, block)))


def standard_normal(like: Tensor, seed: int) -> Tensor:
    """N(0, 1) entries with the shape, dtype and device of ``like``, see ``fill_standard_normal_``."""
    noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    fill_standard_normal_(noise, seed)
    return noise


class DrawAverages:
    """Sums of gradients and of products over the ``sampled_params(train=True)`` contexts of one optimizer step.

    The mean gradient is published in ``p.grad``, so that clipping, ``GradScaler.unscale_`` and reductions work on
    it as they do for any optimizer. Whatever factor they put on ``p.grad`` is put on the products too.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tally = NoiseTally()
        """Noise times gradient of the draws, as the gradients were when they were published."""
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
            set_grad(param, grad_sum / self.count)
            self._norms[param] = torch.linalg.vector_norm(local(param.grad), dtype=grad_sum.dtype)

    def record(self, param: Tensor, grad: Tensor, product: Tensor) -> None:
        """Take over what others averaged: ``product`` of a parameter whose ``p.grad`` is going to be ``grad``."""
        self.count = 1
        self._sums[param] = (grad, product)
        self._norms[param] = torch.linalg.vector_norm(grad, dtype=product.dtype)

    def __contains__(self, param: Tensor) -> bool:
        """Whether a draw gave ``param`` a gradient."""
        return param in self._sums

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

    def take_product(self, param: Tensor, norm: Tensor, power: int) -> Tensor | None:
        """Mean product of ``param`` over the draws, scaled by what happened to ``p.grad`` since; to be taken once.

            mean_s product_s * (||grad now|| / ||grad published||)^power

        Args:
            param: A parameter.
            norm: ||grad now||, of its final gradient (clipped, unscaled, reduced), in the dtype of the state.
            power: 1 for ``noise * grad``, 2 for ``grad^2``.

        Returns:
            A tensor shaped like the parameter, or None if no draw gave it a gradient.
        """
        if param not in self._sums:
            return None
        before = self._norms[param]
        ratio = torch.where(before > 0, norm / before, torch.ones_like(before))
        self.tally.factor = ratio
        return self._sums[param][1].mul_(ratio**power / self.count)
