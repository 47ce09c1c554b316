"""Scores of given strings of tokens under the parameters as they are: one teacher-forced pass, no decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.forward import token_log_probs
from vlora.eval.metrics.arrays import Array

__all__ = ["Row", "TokenScore", "last_states", "score_rows"]

_LOGIT_BUDGET = 2**27


@dataclass(frozen=True)
class Row:
    """A prompt with an answer, in tokens."""

    prompt: tuple[int, ...]
    """At least one token."""
    answer: tuple[int, ...]
    """At least one token."""


@dataclass(frozen=True)
class TokenScore:
    """What a model says about one answer."""

    log_probs: Array
    """log p(y_t | x, y_<t), shape ``(T,)``."""
    entropies: Array
    """Entropy of every next-token distribution, nats, shape ``(T,)``."""


def score_rows(
    model: nn.Module, rows: Sequence[Row], *, pad_id: int, max_tokens: int, vocabulary: int
) -> list[TokenScore]:
    """Log-probability and entropy of every token of every answer.

    Args:
        model: A causal language model in eval mode.
        rows: Prompts with their answers.
        pad_id: Token that fills shorter rows.
        max_tokens: Most tokens in a batch.
        vocabulary: Size of the output; bounds the batch as well.
    """
    found: list[TokenScore | None] = [None] * len(rows)
    fed = [[*row.prompt, *row.answer[:-1]] for row in rows]

    def work(batch: Batch) -> None:
        numbers = batch.rows.tolist()
        counts = [len(rows[number].answer) for number in numbers]
        row = torch.repeat_interleave(torch.arange(len(numbers)), torch.tensor(counts))
        position = torch.cat([_positions(rows[number]) for number in numbers])
        target = torch.tensor([token for number in numbers for token in rows[number].answer])
        log_probs = token_log_probs(model, batch, row, position)
        realised = log_probs.gather(-1, target.to(log_probs.device)[:, None])[:, 0]
        entropy = -(log_probs.exp() * log_probs.clamp_min(-1e4)).sum(-1)
        columns = (part.double().cpu().split(counts) for part in (realised, entropy))
        for number, *parts in zip(numbers, *columns, strict=True):
            found[number] = TokenScore(*(part.numpy() for part in parts))

    for batch in _batches(fed, pad_id, min(max_tokens, max(1, _LOGIT_BUDGET // vocabulary))):
        run_halving(batch, work)
    return [score for score in found if score is not None]


def _positions(row: Row) -> Tensor:
    """Positions whose next token is one of the answer's."""
    return torch.arange(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1)


def _batches(fed: list[list[int]], pad_id: int, max_tokens: int) -> list[Batch]:
    return make_batches({"input_ids": fed}, pad_id=pad_id, max_tokens=max_tokens, max_rows=256)


@torch.inference_mode()
def last_states(model: nn.Module, rows: Sequence[Row], *, pad_id: int, max_tokens: int) -> Array:
    """Hidden state of the middle layer at the last token of every answer: EigenScore's sentence embedding.

    Args:
        model: A causal language model in eval mode.
        rows: Prompts with their answers.
        pad_id: Token that fills shorter rows.
        max_tokens: Most tokens in a batch.

    Returns:
        float64 of shape ``(len(rows), d)``.
    """
    found: list[Array] = [np.empty(0)] * len(rows)
    device = next(model.parameters()).device

    def work(batch: Batch) -> None:
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        states = model(**inputs, output_hidden_states=True).hidden_states
        last = inputs["attention_mask"].sum(-1) - 1
        chosen = states[len(states) // 2][torch.arange(len(last), device=device), last].double().cpu().numpy()
        for number, state in zip(batch.rows.tolist(), chosen, strict=True):
            found[number] = state

    for batch in _batches([[*row.prompt, *row.answer] for row in rows], pad_id, max_tokens):
        run_halving(batch, work)
    return np.stack(found)
