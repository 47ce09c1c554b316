"""Forward passes over token trees behind a cached prefix, under every draw that the model holds.

A prefix is run once per draw, since its keys and values depend on the draw as soon as any block does; blocks below the
first adapted one keep one copy for all draws. Every item of the group then reads it.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vlora.eval.forward import place_logits, unwrapped
from vlora.eval.trees import TreeBatch

__all__ = ["PrefixCache", "encode_prefix", "sharing_obstacle", "tree_inputs", "tree_logits"]

PrefixCache = list[tuple[Tensor, Tensor]]
"""Keys and values of every block: [draws, heads, P, d], or [1, heads, P, d] where all draws agree."""


def sharing_obstacle(model: nn.Module) -> str | None:
    """Why prompts cannot share their forward passes in this model; None when they can."""
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    if config is None or not hasattr(inner, "get_output_embeddings"):
        return "it is not a transformers model"
    active = getattr(model, "active_peft_config", None)
    if active is not None and active.is_prompt_learning:
        return "its adapter puts virtual tokens before the prompt"
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return f"its attention ({config._attn_implementation}) takes no tree mask"
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if kinds != {"full_attention"} or window is not None:
        return "not all of its blocks attend to the whole past"
    missing = {"position_ids", "past_key_values"} - inspect.signature(inner.forward).parameters.keys()
    return f"it takes no {', '.join(sorted(missing))}" if missing else None


def encode_prefix(model: nn.Module, prefix: list[int], count: int) -> PrefixCache:
    """Keys and values of a group's prefix under every draw that the model holds."""
    from transformers import DynamicCache

    cache, none = DynamicCache(), torch.empty(0, dtype=torch.long)
    inputs = {"input_ids": torch.tensor([prefix])}
    place_logits(model, inputs, none, none, count, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]  # pyright: ignore


def tree_logits(model: nn.Module, batch: TreeBatch, prefix: PrefixCache | None, count: int) -> Tensor:
    """Logits at the places of a batch.

    Args:
        model: A causal language model that holds ``count`` draws.
        batch: Trees of one group.
        prefix: The group's prefix under the same draws; None for none.
        count: Draws that the model holds.

    Returns:
        Tensor [count, M, V] in the model's dtype, on its device.
    """
    inputs, cache = tree_inputs(model, batch, prefix)
    return place_logits(model, inputs, batch.rows, batch.nodes, count, **cache)


def tree_inputs(
    model: nn.Module, batch: TreeBatch, prefix: PrefixCache | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors of shape [B, ...] that a batch of trees is run with, and the arguments that hold its prefix."""
    length = prefix[0][0].shape[-2] if prefix else 0
    return {**batch.inputs, "attention_mask": _mask(model, batch, length)}, _cache(prefix, len(batch.items))


def _cache(prefix: PrefixCache | None, size: int) -> dict[str, Any]:
    """Arguments that let every row read the prefix."""
    if not prefix:
        return {}
    from transformers import DynamicCache

    spread = [tuple(tensor.repeat_interleave(size, 0) for tensor in pair) for pair in prefix]
    return {"past_key_values": DynamicCache(spread), "use_cache": True}


def _mask(model: nn.Module, batch: TreeBatch, prefix: int) -> Tensor:
    """Attention mask: [B, P + Q] where nothing branches, else [B, 1, Q, P + Q]."""
    rows, size = batch.inputs["input_ids"].shape
    if batch.mask is None:
        return torch.arange(prefix + size) < (prefix + batch.lengths)[:, None]
    mask = torch.cat([torch.ones(rows, size, prefix, dtype=torch.bool), batch.mask], -1)[:, None]
    inner = unwrapped(model)
    if inner.config._attn_implementation == "sdpa":
        return mask
    dtype = inner.get_input_embeddings().weight.dtype
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
