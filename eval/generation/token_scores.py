"""Scores of given strings of tokens under the parameters as they are: one teacher-forced pass, no decoding.

Answers to one prompt share its keys and values: the prompt is read once, its cache repeated, and only the answers'
tokens follow. The first token of an answer needs no more than the prompt, so one-token answers cost nothing extra.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.generate import Prefix, accepts, forward, prefill
from vlora.eval.metrics.arrays import Array

__all__ = ["Row", "TokenScore", "last_states", "score_rows"]

_LOGIT_BUDGET = 2**27
_CACHE_FACTOR = 8  # tokens of cache that may be held for each token of a batch: they have no activations


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


@torch.inference_mode()
def score_rows(
    model: nn.Module, rows: Sequence[Row], *, pad_id: int, max_tokens: int, vocabulary: int
) -> list[TokenScore]:
    """Log-probability and entropy of every token of every answer.

    Args:
        model: A causal language model in eval mode.
        rows: Prompts with their answers; equal prompts are read once.
        pad_id: Token that fills shorter rows.
        max_tokens: Most tokens in a batch.
        vocabulary: Size of the output; bounds the batch as well.

    Returns:
        One score a row, in their order.

    Raises:
        ConfigError: The model keeps no key/value cache.
    """
    found: dict[int, TokenScore] = {}
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        by_prompt.setdefault(row.prompt, []).append(number)
    for prompts in _prompt_batches(model, by_prompt, max_tokens, vocabulary):
        prefix = prefill(model, prompts, pad_id)
        members = [(place, number) for place, prompt in enumerate(prompts) for number in by_prompt[prompt]]
        for chunk in _chunks(members, rows, prefix.mask.shape[1], max_tokens, vocabulary):
            own = prefix if len(chunk) == len(members) else copy.deepcopy(prefix)
            own.select(torch.tensor([place for place, _ in chunk]))
            numbers = [number for _, number in chunk]
            scores = _behind(model, own, [rows[number].answer for number in numbers], pad_id)
            found.update(zip(numbers, scores, strict=True))
    return [found[number] for number in range(len(rows))]


def _prompt_batches(
    model: nn.Module, by_prompt: dict[tuple[int, ...], list[int]], max_tokens: int, vocabulary: int
) -> Iterator[list[tuple[int, ...]]]:
    """Prompts to read together: longest first, or of one length where positions cannot be told."""
    mixed, most = accepts(model, "position_ids"), max(1, _LOGIT_BUDGET // vocabulary)
    batch: list[tuple[int, ...]] = []
    for prompt in sorted(by_prompt, key=lambda prompt: (-len(prompt), prompt)):
        longest = len(batch[0]) if batch else len(prompt)
        full = (len(batch) + 1) * longest > max_tokens or len(batch) == most
        if batch and (full or (not mixed and len(prompt) != longest)):
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _chunks(
    members: list[tuple[int, int]], rows: Sequence[Row], width: int, max_tokens: int, vocabulary: int
) -> Iterator[list[tuple[int, int]]]:
    """Answers to score together, longest first."""
    members = sorted(members, key=lambda member: -len(rows[member[1]].answer))
    start = 0
    while start < len(members):
        longest = len(rows[members[start][1]].answer)
        most = min(
            max_tokens // longest,
            _CACHE_FACTOR * max_tokens // (width + longest),
            _LOGIT_BUDGET // (longest * vocabulary),
        )
        yield members[start : start + max(1, most)]
        start += max(1, most)


def _behind(
    model: nn.Module, prefix: Prefix, answers: Sequence[tuple[int, ...]], pad_id: int
) -> list[TokenScore]:
    """Scores of one answer behind each row of a prefix."""
    device, longest = prefix.logits.device, max(len(answer) for answer in answers)
    padded = [[*answer, *[pad_id] * (longest - len(answer))] for answer in answers]
    ids, lengths = torch.tensor(padded, device=device), [len(answer) for answer in answers]
    logits = prefix.logits[:, None]
    if longest > 1:
        fed = longest - 1  # the last token is predicted, never read
        real = torch.arange(fed, device=device) < torch.tensor(lengths, device=device)[:, None]
        mask = torch.cat([prefix.mask, real.to(prefix.mask)], dim=1)
        positions = prefix.position[:, None] + 1 + torch.arange(fed, device=device)
        rest, _ = forward(model, ids[:, :-1], mask, positions, prefix.cache, last=False)
        logits = torch.cat([logits, rest], dim=1)
    log_probs = logits.log_softmax(-1)
    realised = log_probs.gather(-1, ids[:, :, None])[:, :, 0]
    entropy = -(log_probs.exp() * log_probs.clamp_min(-1e4)).sum(-1)
    return [
        TokenScore(*(part.double().cpu().numpy() for part in (realised[row, :length], entropy[row, :length])))
        for row, length in enumerate(lengths)
    ]


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
        chosen: Tensor = states[len(states) // 2][torch.arange(len(last), device=device), last]
        for number, state in zip(batch.rows.tolist(), chosen.double().cpu().numpy(), strict=True):
            found[number] = state

    fed = {"input_ids": [[*row.prompt, *row.answer] for row in rows]}
    for batch in make_batches(fed, pad_id=pad_id, max_tokens=max_tokens, max_rows=256):
        run_halving(batch, work)
    return np.stack(found)
