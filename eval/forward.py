"""Forward passes for scoring: no dropout, no gradients, float32 before every softmax.

Logits of bf16 and fp16 models are upcast to float32 *before* ``log_softmax``: a bf16 softmax over two classes takes
only 129 values and returns exactly 1.0 from a logit gap of 6.2 on, which ruins every calibration metric.
Only positions whose next token is scored reach the output head where the model can be told so (``logits_to_keep``);
with a vocabulary of 128k the head's float32 output is by far the largest tensor of the pass.
"""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.eval.batching import Batch

if TYPE_CHECKING:
    from vlora.posterior import Posterior

__all__ = ["Draws", "class_log_probs", "token_log_probs"]


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

    def at(self, draw: int | None) -> AbstractContextManager[object]:
        """Context with the parameters at draw k (None: the mean); what was there comes back, bit for bit."""
        if draw is None or self.posterior is None:
            return nullcontext()
        return self.posterior.sampled(self.model, draw, antithetic=self.antithetic)


@torch.inference_mode()
def class_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probabilities of a classification head.

    Returns:
        float64 CPU tensor [B, K].
    """
    logits = model(**_to_device(batch, model)).logits
    return logits.float().log_softmax(-1).double().cpu()


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
    inputs = _to_device(batch, model)
    device = inputs["input_ids"].device
    rows, positions = rows.to(device), positions.to(device) + _virtual_tokens(model)
    if _takes_positions(model):
        kept, positions = positions.unique(return_inverse=True)
        logits = model(**inputs, logits_to_keep=kept).logits
    else:
        logits = model(**inputs).logits
    return logits[rows, positions].float().log_softmax(-1)


def _to_device(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}


def _takes_positions(model: nn.Module) -> bool:
    """Whether the model itself, under any PEFT wrapper, knows ``logits_to_keep``."""
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _virtual_tokens(model: nn.Module) -> int:
    """Positions that a prompt-learning adapter puts before the tokens; a cached prefix takes none."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
        return 0
    return int(config.num_virtual_tokens)
