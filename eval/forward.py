"""Forward passes for scoring: no dropout, float32 before every softmax.

Logits of bf16 and fp16 models are upcast to float32 *before* ``log_softmax``: a bf16 softmax over two classes takes
only 129 values and returns exactly 1.0 from a logit gap of 6.2 on, which ruins every calibration metric.
Only places whose next token is scored reach the output head; with a vocabulary of 128k the head's float32 output is by
far the largest tensor of the pass.

A model that holds several draws at once (:mod:`vlora.stacked`) takes its rows draw after draw: ``count`` says how many.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.eval.batching import Batch
from vlora.eval.config import Scoring

if TYPE_CHECKING:
    from vlora.posterior import Posterior

__all__ = [
    "Draws",
    "class_log_probs",
    "gather_log_probs",
    "model_device",
    "place_logits",
    "repeated",
    "token_log_probs",
    "unwrapped",
]


@dataclass(frozen=True)
class Draws:
    """A model that can be put at its posterior mean or at one of its numbered draws.

    Draw k is one parameter vector for everything that is scored under it: all items, all choices of an item and
    all tokens of a string. That makes mixtures over k expectations of products (Malinin and Gales 2021,
    arXiv:2002.07650), and the same k in another model of the same layout uses the same random numbers.
    """

    model: nn.Module
    """The model at its mean, on its device."""
    posterior: "Posterior | None" = None
    """Source of the draws; None for a base model or a plain adapter."""
    num_samples: int = 0
    """Number of draws, S."""
    antithetic: bool = False
    """Draws 2j and 2j+1 mirror each other."""
    scoring: Scoring = "auto"
    """How the draws are run."""

    def at(self, draw: int | None) -> AbstractContextManager[object]:
        """Context with the parameters at draw k (None: the mean); what was there comes back, bit for bit."""
        if draw is None or self.posterior is None:
            return nullcontext()
        return self.posterior.sampled(self.model, draw, antithetic=self.antithetic)


def repeated(inputs: Mapping[str, Tensor], count: int, device: torch.device) -> dict[str, Tensor]:
    """Inputs of shape [B, ...] on the device, once per held draw: [count * B, ...]."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    if count == 1:
        return moved
    return {name: tensor.repeat(count, *[1] * (tensor.dim() - 1)) for name, tensor in moved.items()}


def class_log_probs(model: nn.Module, batch: Batch, count: int = 1) -> Tensor:
    """Log-probabilities of a classification head.

    Args:
        model: A sequence classifier that holds ``count`` draws.
        batch: Token rows, B of them.
        count: Draws that the model holds.

    Returns:
        float64 CPU tensor [count, B, K].
    """
    logits = model(**repeated(batch.inputs, count, model_device(model))).logits
    return logits.float().log_softmax(-1).double().cpu().unflatten(0, (count, -1))


def gather_log_probs(logits: Tensor, place: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of single tokens; one draw's logits at a time become float32.

    Args:
        logits: Logits [count, M, V].
        place: Which of the M places each token is predicted from, int64 [Q].
        targets: The tokens, int64 [Q].

    Returns:
        float64 CPU tensor [count, Q].
    """
    place, targets = place.to(logits.device), targets.to(logits.device)
    found = []
    for one in logits:
        chosen = one.float()
        found.append((chosen[place, targets] - chosen.logsumexp(-1)[place]).double().cpu())
    return torch.stack(found)


@torch.inference_mode()
def token_log_probs(model: nn.Module, batch: Batch, rows: Tensor, positions: Tensor) -> Tensor:
    """Log-probabilities of the next token over the whole vocabulary at chosen places.

    Args:
        model: A causal language model.
        batch: Token rows.
        rows: Row within the batch of each place, int64 [M].
        positions: Position of each place, int64 [M]; what is returned predicts position + 1.

    Returns:
        float32 tensor [M, V] on the model's device.
    """
    return place_logits(model, batch.inputs, rows, positions)[0].float().log_softmax(-1)


def place_logits(
    model: nn.Module, inputs: Mapping[str, Any], rows: Tensor, positions: Tensor, count: int = 1, **more: Any
) -> Tensor:
    """Logits at chosen places, under every draw that the model holds.

    Args:
        model: A causal language model that holds ``count`` draws.
        inputs: Tensors of shape [B, ...] that every draw gets.
        rows: Row of each place, int64 [M].
        positions: Position of each place in its row, int64 [M].
        count: Draws that the model holds.
        **more: Further arguments of the model, as they are, such as a cache.

    Returns:
        Tensor [count, M, V] in the model's dtype, on its device.
    """
    device = model_device(model)
    tensors = repeated(inputs, count, device)
    size = len(tensors["input_ids"]) // count
    rows = (rows.to(device) + torch.arange(count, device=device)[:, None] * size).flatten()
    positions = (positions.to(device) + _virtual_tokens(model)).repeat(count)
    with _only(model, rows, positions) as gathered:
        logits = model(**tensors, **more).logits
    if not gathered:  # the model does not call its head as a module
        logits = logits[rows, positions]
    return logits.view(count, len(rows) // count, logits.shape[-1])


@contextmanager
def _only(model: nn.Module, rows: Tensor, positions: Tensor) -> Iterator[list[bool]]:
    """Let only these places reach the output head; the list is empty where that could not be done."""
    gathered: list[bool] = []
    find = getattr(unwrapped(model), "get_output_embeddings", None)
    head = find() if find is not None else None

    def gather(module: nn.Module, args: tuple[Any, ...]) -> Any:
        gathered.append(True)
        return (args[0][rows, positions][None], *args[1:])

    handle = None if head is None else head.register_forward_pre_hook(gather)
    try:
        yield gathered
    finally:
        if handle is not None:
            handle.remove()


def model_device(model: nn.Module) -> torch.device:
    """Where the model takes its inputs."""
    return next(model.parameters()).device


def unwrapped(model: Any) -> Any:
    """The transformers model under any PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _virtual_tokens(model: nn.Module) -> int:
    """Positions that a prompt-learning adapter puts before the tokens; a cached prefix takes none."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        return 0
    return int(config.num_virtual_tokens)
