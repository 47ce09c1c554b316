"""Seeing what goes into a layer and which gradient comes back to its output, while a backward pass goes by."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["watched"]

Receive = Callable[[Tensor, Tensor], None]


@contextmanager
def watched(receivers: Mapping[nn.Module, Receive]) -> Iterator[None]:
    """Hand every watched layer's input and output gradient to its receiver, for the length of the block.

    Receivers are called without autograd, layer by layer as the backward pass reaches them, so that only one layer's
    gradient is alive at a time. A forward pass without gradients is not seen.

    Args:
        receivers: Layer -> function of its first input and of the gradient of its output.
    """
    handles: list[RemovableHandle] = []
    try:
        for layer, receive in receivers.items():
            handles.append(layer.register_forward_hook(_forward_hook(torch.no_grad()(receive))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(receive: Receive) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing below is trainable: the graph starts here
            output = output.detach().requires_grad_().clone()
        inputs = args[0].detach()
        output.register_hook(lambda gradient: receive(inputs, gradient))
        return output

    return hook
