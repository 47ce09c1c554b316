r"""Leaf layers with one weight per sample: what a stacked forward pass runs in place of the shared weights.

Rows come sample after sample, ``x`` of shape [S * B, ..., in]. A linear layer with weights ``W_s`` [S, out, in] is then
one batched product, ``y_s = x_s W_s^T + b_s`` (``torch.bmm``). A LoRA layer needs nothing of its own: PEFT's forward
calls its factors A and B as linear layers, so scaling (alpha/r, rsLoRA, patterns), dropout and the frozen matrix are
untouched, and the frozen product runs once over all rows.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["patched", "supports"]

Weights = Mapping[str, Tensor]
"""Parameter name (``weight``, ``bias``) -> stack of shape [S, ...]."""


def supports(module: nn.Module, names: set[str]) -> bool:
    """Whether these parameters of a layer can differ from sample to sample.

    A quantised linear layer can have its bias stacked, not its weight.
    """
    if type(module) in _FORWARDS:
        return True
    return names == {"bias"} and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")


@contextmanager
def patched(layers: Mapping[nn.Module, Weights]) -> "Iterator[None]":
    """Run these layers with their stacked weights inside the block; afterwards they are what they were."""
    with ExitStack() as undo:
        for module, weights in layers.items():
            forward = _FORWARDS.get(type(module), _bias_only)
            former: Callable[..., Tensor] = module.forward
            before = module.__dict__.get("forward")
            module.forward = partial(forward, module, weights, former)
            undo.callback(_restore, module, before)
        yield


def _restore(module: nn.Module, before: Any) -> None:
    """Take the stacked forward away; a forward that somebody else had put on the instance comes back."""
    del module.forward
    if before is not None:
        module.forward = before


def _by_sample(x: Tensor, weights: Weights) -> Tensor:
    """Rows [S * B, ..., d] as [S, B * ..., d]."""
    count = len(next(iter(weights.values())))
    return x.reshape(count, -1, x.shape[-1])


def _linear(module: nn.Linear, weights: Weights, former: Callable[..., Tensor], x: Tensor) -> Tensor:
    """``y_s = x_s W_s^T + b_s``."""
    if "weight" not in weights:
        return _bias_only(module, weights, former, x)
    rows, weight = _by_sample(x, weights), weights["weight"].transpose(1, 2)
    if "bias" in weights:
        out = torch.baddbmm(weights["bias"][:, None], rows, weight)
    else:
        out = torch.bmm(rows, weight)
        out = out if module.bias is None else out + module.bias
    return out.view(*x.shape[:-1], out.shape[-1])


def _bias_only(module: Any, weights: Weights, former: Callable[..., Tensor], x: Tensor, *more: Any) -> Tensor:
    """The shared layer, with the difference of the biases added; works for quantised weights too."""
    out = former(x, *more)
    shift = weights["bias"] - module.bias
    return (_by_sample(out, weights) + shift[:, None].to(out.dtype)).view(out.shape)


def _embedding(module: nn.Embedding, weights: Weights, former: Callable[..., Tensor], ids: Tensor) -> Tensor:
    """Row ``ids`` of the sample's own table."""
    table = weights["weight"]
    count, size = table.shape[:2]
    start = torch.arange(count, device=ids.device).repeat_interleave(len(ids) // count) * size
    return nn.functional.embedding(ids + start.view(-1, *[1] * (ids.dim() - 1)), table.flatten(0, 1))


def _layer_norm(module: nn.LayerNorm, weights: Weights, former: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Normalised rows times the sample's gain plus its shift."""
    rows = _by_sample(nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps), weights)
    gain = weights["weight"][:, None] if "weight" in weights else module.weight
    shift = weights["bias"][:, None] if "bias" in weights else module.bias
    rows = rows if gain is None else rows * gain
    return (rows if shift is None else rows + shift).view(x.shape)


_FORWARDS: dict[type, Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
}
