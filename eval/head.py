"""The trunk of a causal language model under all held draws at once, and its output head one draw at a time.

With a vocabulary of 128k the logits are by far the largest tensor of a pass; draws times places of them are never made
here. What lies behind the trunk (a head that is adapted itself, soft caps and scales of the logits) is the model's own
code: its forward is called again with a trunk that hands out the states it gave before.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.eval.forward import model_device, place_logits, repeated, unwrapped

if TYPE_CHECKING:
    from vlora.eval.variants import Variants

__all__ = ["head_is_apart", "logits_in_turn"]

logger = logging.getLogger(__name__)


def logits_in_turn(
    variants: "Variants", part: slice, inputs: Mapping[str, Any], rows: Tensor, positions: Tensor, **more: Any
) -> Iterator[Tensor]:
    """Logits at chosen places under vectors that fit side by side, one vector's at a time.

    Args:
        variants: The model and its parameter vectors.
        part: Those to score under.
        inputs: Tensors of shape [B, ...] that every vector gets.
        rows: Row of each place, int64 [M].
        positions: Position of each place in its row, int64 [M].
        **more: Further arguments of the model, such as a cache.

    Yields:
        Tensor [M, V] in the model's dtype, on its device. All of them are made at once where the model's trunk cannot
        be told from what lies behind it (``variants.apart`` is False), or a single vector is held.
    """
    numbers = range(len(variants.which))[part]
    if not variants.apart or len(numbers) == 1:
        with variants.holding(part) as count:
            made = place_logits(variants.model, inputs, rows, positions, count, **more)
        yield from made
        return
    with variants.holding(part) as count:
        output, states = _trunk_states(variants.model, inputs, rows, positions, count, **more)
    for number, own in zip(numbers, states, strict=True):
        with variants.holding(slice(number, number + 1)):
            logits = _behind_trunk(variants.model, output, own)
        yield logits
        del logits


def head_is_apart(model: nn.Module) -> bool:
    """Whether the model's own code behind its trunk can be run by itself; tried with two rows of three tokens.

    The places are in another order than the positions, so that a head which looks at where a state stood, or at its
    neighbours, is found out; so is one that cannot be called in this way.
    """
    if _trunk(model) is None:
        return False
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 0, 2]])}
    rows, positions = torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1])
    logits = model(**repeated(inputs, 1, model_device(model))).logits
    whole = logits[rows.to(logits.device), positions.to(logits.device)]
    try:
        output, states = _trunk_states(model, inputs, rows, positions, 1)
        if output is None:
            return False
        apart = _behind_trunk(model, output, states[0])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        logger.debug("the output head cannot be run by itself: %s", error)
        return False
    rounding = torch.finfo(whole.dtype).eps ** 0.5
    return apart.shape == whole.shape and bool(
        (apart - whole).abs().max() <= rounding * whole.abs().max().clamp_min(1)
    )


def _trunk(model: nn.Module) -> nn.Module | None:
    """The module that makes the last hidden states."""
    inner = unwrapped(model)
    find = getattr(inner, "get_decoder", None)
    found = find() if find is not None else None
    return None if found is inner else found


def _trunk_states(
    model: nn.Module, inputs: Mapping[str, Any], rows: Tensor, positions: Tensor, count: int, **more: Any
) -> tuple[Any, Tensor]:
    """The trunk's output without its states, and its states at chosen places [count, M, d].

    The head sees one place of every vector.
    The output is None where the model does not call its trunk, or gets something else from it than named states.
    """
    tensors = repeated(inputs, count, model_device(model))
    kept: list[tuple[Any, Tensor]] = []

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Mapping) or output.get("last_hidden_state") is None:
            return None
        every = output["last_hidden_state"].unflatten(0, (count, -1))
        states = every[:, rows.to(every.device), positions.to(every.device)]
        kept.append((_with_states(output, every[:, 0, :1].clone()), states))
        return kept[0][0]

    trunk: Any = _trunk(model)
    handle = trunk.register_forward_hook(keep)
    try:
        model(**tensors, **more)
    finally:
        handle.remove()
    return kept[0] if kept else (None, torch.empty(0))


def _behind_trunk(model: nn.Module, output: Any, states: Tensor) -> Tensor:
    """Logits [M, V] of states [M, d]."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=states.device)
    with _giving(_trunk(model), _with_states(output, states[None])):
        return unwrapped(model)(input_ids=ids).logits[0]


@contextmanager
def _giving(trunk: Any, output: Any) -> Iterator[None]:
    """Let the trunk return this output, whatever it is given."""
    before = trunk.__dict__.get("forward")  # of somebody else, such as accelerate's for split models
    trunk.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del trunk.forward
        if before is not None:
            trunk.forward = before


def _with_states(output: Any, states: Tensor) -> Any:
    """A copy of a trunk's output with other states and no cache."""
    kept = {name: value for name, value in output.items() if name != "past_key_values"}
    return type(output)(**{**kept, "last_hidden_state": states})
