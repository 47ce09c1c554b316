r"""Answers sampled from a causal language model, with a key/value cache, the same whatever the batch.

Ancestral sampling: ``y_t ~ p(. | x, y_<t)^(1/temperature)``, cut to the smallest set of tokens with mass ``top_p``, all
tokens of an answer under one parameter vector. What is stored per token is the log-probability and the entropy of the
*untempered, untruncated* distribution: temperature and top-p shape what is drawn, not what the model believes.

Every answer has a random stream of its own, keyed by (seed, item, draw, answer), and takes its token by the inverse of
the cumulative distribution. So an answer depends neither on the batch it was in, nor on the order of the items, nor on
what was done before a resumed run; ``generate`` of transformers draws from one global stream and cannot do that.

Prompts are padded on the left, with a mask and explicit positions, so that the last column holds every prompt's last
token; models that take no positions get prompts of one length at a time. The cache is made anew for every call: keys
and values of one posterior draw are wrong for every other.
"""

import hashlib
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlora.errors import ConfigError, DataError

__all__ = [
    "Answer",
    "Decoding",
    "Prefix",
    "accepts",
    "answer_noise",
    "check_generates",
    "forward",
    "generate_answers",
    "prefill",
]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn."""

    max_new_tokens: int = 32
    """Longest answer in tokens, stop token included."""
    temperature: float = 1.0
    """Of the tokens: above 0; 1 samples the model's own distribution, which the estimators assume."""
    top_p: float = 1.0
    """Keep the most likely tokens up to this mass, in (0, 1]."""
    stop_ids: frozenset[int] = field(default_factory=frozenset)
    """Tokens that end an answer."""


@dataclass(frozen=True)
class Answer:
    """One answer in tokens."""

    ids: list[int]
    """Tokens, the stop token included."""
    log_probs: list[float]
    """Untempered log p(y_t | x, y_<t) of every token, nats."""
    entropies: list[float]
    """Entropy of every next-token distribution, nats."""
    ended: bool
    """Whether a stop token came; otherwise the answer was cut at ``max_new_tokens``."""


def answer_noise(seed: int, item: str, draw: int, answer: int, count: int) -> np.ndarray:
    """Uniform numbers of one answer, the same on every machine: Philox keyed by a hash of who it is for.

    Args:
        seed: Seed of the evaluation.
        item: Identity of the item.
        draw: Number of the posterior draw.
        answer: Number of the answer under that draw.
        count: Numbers, one a token.

    Returns:
        float64 in [0, 1), shape ``(count,)``; the first n do not depend on ``count``.
    """
    digest = hashlib.sha256(f"vlora-answer/1/{seed}/{draw}/{answer}/{item}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(count)


def check_generates(model: nn.Module) -> None:
    """Refuse adapters whose virtual tokens would be put in front at every step.

    Raises:
        ConfigError: The model carries a prompt-learning adapter.
    """
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise ConfigError(
            f"answers cannot be sampled with a {config.peft_type} adapter: its virtual tokens do not go with a "
            "key/value cache here; use an adapter on weights such as LoRA"
        )


@torch.inference_mode()
def generate_answers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    noise: Sequence[Sequence[np.ndarray]] | None = None,
    pad_id: int = 0,
) -> list[list[Answer]]:
    """Answers to every prompt with the parameters as they are.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids of every prompt, each at least one.
        decoding: Length, temperature, top-p, stop tokens.
        noise: For each prompt the uniform numbers of each of its answers; None gives one greedy answer a prompt.
        pad_id: Token that fills shorter prompts; masked.

    Returns:
        For each prompt its answers, in the order of ``noise``.

    Raises:
        DataError: A prompt without tokens.
        ConfigError: The model keeps no key/value cache, or carries a prompt-learning adapter.
    """
    check_generates(model)
    if any(len(prompt) == 0 for prompt in prompts):
        raise DataError("a prompt has no token; give the tokenizer a BOS token or the prompt a text")
    streams = [[None]] * len(prompts) if noise is None else noise
    answers: list[list[Answer]] = [[] for _ in prompts]
    for group in _groups(model, prompts):
        rows = [(prompt, stream) for prompt in group for stream in streams[prompt]]
        if not rows:
            continue
        state = prefill(model, [prompts[prompt] for prompt in group], pad_id)
        place = {prompt: row for row, prompt in enumerate(group)}
        state.select(torch.tensor([place[prompt] for prompt, _ in rows]))
        made = _decode(model, state, [stream for _, stream in rows], decoding)
        for (prompt, _), answer in zip(rows, made, strict=True):
            answers[prompt].append(answer)
    return answers


def _groups(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Iterable[list[int]]:
    """Prompts that may share a batch: all, or those of one length where positions cannot be told."""
    if accepts(model, "position_ids"):
        return [list(range(len(prompts)))]
    lengths: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(number)
    return lengths.values()


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model itself, under any PEFT wrapper, takes an argument of that name."""
    wrapped: Any = model
    inner = wrapped.get_base_model() if hasattr(model, "get_base_model") else wrapped
    return argument in inspect.signature(inner.forward).parameters


@dataclass
class Prefix:
    """Rows that stand behind their prompts, with a cache: what comes next is decoded or scored."""

    logits: Tensor
    """Of the next token, float32 ``(R, V)``."""
    cache: Any
    """Keys and values of these rows under the parameters that made them, and no others."""
    mask: Tensor
    """1 for tokens, 0 for padding on the left, ``(R, T)``."""
    position: Tensor
    """Position of the last token, ``(R,)``."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        rows = rows.to(self.logits.device)
        self.logits, self.mask, self.position = self.logits[rows], self.mask[rows], self.position[rows]
        self.cache.batch_select_indices(rows)


def prefill(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> Prefix:
    """One pass over prompts, padded on the left.

    Args:
        model: A causal language model in eval mode; without positions, prompts of one length.
        prompts: Token ids, each at least one.
        pad_id: Token that fills shorter prompts; masked.

    Raises:
        ConfigError: The model keeps no key/value cache.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits, cache = forward(model, ids, mask, positions, None)
    return Prefix(logits, cache, mask, positions[:, -1])


def forward(
    model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, *, last: bool = True
) -> tuple[Tensor, Any]:
    """One pass over tokens behind a cache.

    Args:
        model: A causal language model.
        ids: Tokens ``(R, T)``.
        mask: 1 for tokens of cache and ids, ``(R, T_cache + T)``.
        positions: Positions of the tokens, ``(R, T)``.
        cache: What was before, extended in place; None for nothing.
        last: Take the logits of the last column alone.

    Returns:
        Logits in float32, ``(R, V)`` or ``(R, T, V)``, and the cache.

    Raises:
        ConfigError: The model keeps no key/value cache.
    """
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
    if accepts(model, "position_ids"):
        inputs["position_ids"] = positions
    if last and accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    output = model(**inputs, past_key_values=cache) if cache is not None else model(**inputs)
    cache = getattr(output, "past_key_values", None)
    if not hasattr(cache, "batch_select_indices"):
        raise ConfigError(
            f"{type(model).__name__} keeps no key/value cache that batches can share; use a transformer decoder"
        )
    return (output.logits[:, -1] if last else output.logits).float(), cache


def _decode(
    model: nn.Module, state: Prefix, streams: Sequence[np.ndarray | None], decoding: Decoding
) -> list[Answer]:
    """Draw token after token until every row has ended."""
    answers = [Answer([], [], [], False) for _ in streams]
    stop = torch.tensor(sorted(decoding.stop_ids), dtype=torch.long)
    alive = list(range(len(streams)))
    for step in range(decoding.max_new_tokens):
        log_probs = state.logits.log_softmax(-1)
        chosen = _choose(state.logits, [streams[row] for row in alive], step, decoding)
        columns = (
            chosen.tolist(),
            log_probs.gather(-1, chosen[:, None])[:, 0].double().tolist(),
            (-(log_probs.exp() * log_probs.clamp_min(-1e4)).sum(-1)).double().tolist(),
        )
        for row, token, log_prob, entropy in zip(alive, *columns, strict=True):
            answers[row].ids.append(token)
            answers[row].log_probs.append(log_prob)
            answers[row].entropies.append(entropy)
        going = ~torch.isin(chosen.cpu(), stop)
        for row, goes in zip(alive, going.tolist(), strict=True):
            if not goes:
                answers[row] = Answer(answers[row].ids, answers[row].log_probs, answers[row].entropies, True)
        if step + 1 == decoding.max_new_tokens or not going.any():
            break
        if not going.all():
            state.select(going.nonzero()[:, 0])
            chosen = chosen[going.to(chosen.device)]
            alive = [row for row, goes in zip(alive, going.tolist(), strict=True) if goes]
        state.mask = torch.cat([state.mask, state.mask.new_ones(len(alive), 1)], dim=1)
        state.position = state.position + 1
        state.logits, state.cache = forward(
            model, chosen[:, None], state.mask, state.position[:, None], state.cache
        )
    return answers


def _choose(logits: Tensor, streams: Sequence[np.ndarray | None], step: int, decoding: Decoding) -> Tensor:
    """Next token of every row: the most likely one, or by the inverse of the cumulative distribution."""
    if not streams or streams[0] is None:
        return logits.argmax(-1)
    probs = (logits.double() / decoding.temperature).softmax(-1)
    if decoding.top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= decoding.top_p  # the token that crosses the mass stays
        probs = probs.masked_fill(beyond.gather(-1, order.argsort(dim=-1)), 0.0)
    levels = torch.tensor([float(s[step]) for s in streams if s is not None], dtype=torch.float64)
    total = probs.cumsum(-1)
    return (total > levels.to(total.device)[:, None] * total[:, -1:]).int().argmax(-1)
