"""Blocks below the first adapted one: every sample has the same activations there, so they are computed once.

Cost of a pass with S samples over L blocks of which the first l hold nothing stochastic: ``l/L + S (1 - l/L)`` instead
of S. The model itself is always called with all S * B rows; inside those l blocks only the first B of them run, and
the output of the last such block is repeated. Their key/value caches hold B rows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["block_list", "shared_blocks", "sharing"]


def block_list(model: Any) -> nn.ModuleList | None:
    """The stack of transformer blocks, or None where it cannot be told."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "num_hidden_layers", None)
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == size]
    return found[0] if found else None


def shared_blocks(model: nn.Module, owners: Iterable[nn.Module]) -> list[nn.Module]:
    """Blocks that run before anything stochastic does.

    Args:
        model: PEFT model without wrappers.
        owners: Modules with stochastic tensors.

    Returns:
        The first l blocks; none where an owner is defined before the blocks, as embeddings are.
    """
    blocks = block_list(model)
    if blocks is None:
        return []
    order = {module: number for number, module in enumerate(model.modules())}
    starts = [order[block] for block in blocks]
    depth = len(blocks)
    for owner in owners:
        before = sum(start <= order[owner] for start in starts)
        inside = before > 0 and any(module is owner for module in blocks[before - 1].modules())
        if before == 0:
            return []
        depth = min(depth, before - 1 if inside else len(blocks))
    return list(blocks)[:depth]


@contextmanager
def sharing(blocks: list[nn.Module], count: int) -> Iterator[None]:
    """Run these blocks on the rows of the first sample only, inside the block."""
    if not blocks or count == 1:
        yield
        return
    rows = 0

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal rows
        if module is blocks[0]:
            rows = len(args[0] if args else kwargs["hidden_states"])
        return _map(args, _first(rows, count)), _map(kwargs, _first(rows, count))

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return _repeat(output, count)
        return type(output)((_repeat(output[0], count), *output[1:]))

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(rows: int, count: int) -> Callable[[Tensor], Tensor]:
    """Cut what has all rows (hidden states, masks, positions) to the rows of one sample."""
    return lambda value: value[: rows // count] if value.dim() > 1 and len(value) == rows else value


def _repeat(value: Tensor, count: int) -> Tensor:
    return value.repeat(count, *[1] * (value.dim() - 1))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply to every tensor in nested tuples, lists and dictionaries; caches and flags pass."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_map(entry, change) for entry in value)
    return {key: _map(entry, change) for key, entry in value.items()} if type(value) is dict else value
