"""Scoring one model: its items at the posterior mean and under every draw, whatever the task."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.data import Example, RowFormat, Task
from vlora.data.encode import fitting_length
from vlora.eval.agreement import trusted_variants
from vlora.eval.forward import Draws
from vlora.eval.score_choices import ChoiceScorer, encode_choices
from vlora.eval.score_labels import LabelScorer
from vlora.eval.score_lm import TextScorer, encode_texts
from vlora.eval.sink import Sink, draw_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Scorer", "Scores", "build_scorer", "collect", "run_scorer", "score_draws", "score_model"]

logger = logging.getLogger(__name__)

Scorer = LabelScorer | ChoiceScorer | TextScorer


@dataclass(frozen=True)
class Scores:
    """What one model says about all items, in their order.

    Attributes:
        log_probs: At the mean, ``log p(k | x)`` normalised over k, float64 [N, K]; None for causal_lm.
        sample_log_probs: Under each draw, float64 [N, S, K]; None without draws and for causal_lm.
        texts: One ``lm`` record an item for causal_lm, else None.
        expectation_of_products: Multiple choice with draws: every choice's ``log (1/S) sum_s prod_t p_s(c_t)``, one
            parameter vector per whole string, normalised over the choices afterwards, float64 [N, K].
        product_of_expectations: The same of the per-token mixture, ``sum_t log (1/S) sum_s p_s(c_t)``.
    """

    log_probs: Tensor | None = None
    sample_log_probs: Tensor | None = None
    texts: list[dict[str, Any]] | None = None
    expectation_of_products: Tensor | None = None
    product_of_expectations: Tensor | None = None


def build_scorer(
    task: Task,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    model_config: Any,
    *,
    max_tokens: int = 8192,
    max_rows: int = 256,
) -> Scorer:
    """Tokenise and batch the items once, for every model on this base.

    Args:
        task: What is scored.
        examples: The items.
        tokenizer: Tokenizer of the base model, with a padding token.
        row_format: How examples become tokens.
        model_config: Configuration of the base model: ``num_labels``, ``vocab_size``, longest sequence.
        max_tokens: Most tokens in a batch, padding included.
        max_rows: Most rows in a batch.

    Raises:
        DataError: An item has nothing that could be scored.
    """
    max_length = fitting_length(row_format, tokenizer, model_config)
    sizes = {"max_tokens": max_tokens, "max_rows": max_rows}
    if task == "sequence_classification":
        classes = model_config.num_labels
        return LabelScorer(examples, tokenizer, num_labels=classes, max_length=max_length, **sizes)
    pad_id: Any = tokenizer.pad_token_id
    vocabulary = model_config.get_text_config().vocab_size
    if task == "multiple_choice":
        choices = encode_choices(examples, tokenizer, row_format, max_length=max_length)
        return ChoiceScorer(choices, pad_id=pad_id, vocabulary=vocabulary, **sizes)
    texts = encode_texts(examples, tokenizer, row_format, max_length=max_length)
    return TextScorer(texts, pad_id=pad_id, vocabulary=vocabulary, **sizes)


def score_model(scorer: Scorer, draws: Draws, tick: Callable[[int], object] = int) -> Scores:
    """Score all items at the mean, and under every draw, each draw shared by all items.

    Args:
        scorer: The items.
        draws: The model, in eval mode, with its posterior draws. Its parameters are afterwards what they were.
        tick: Called with items times parameter vectors as they are done.
    """
    results = _results(scorer, draws, [None, *range(draws.num_samples)], tick)
    return collect(results, getattr(scorer, "lengths", None))


def score_draws(scorer: Scorer, draws: Draws, tick: Callable[[int], object] = int) -> Scores:
    """Score all items under every draw and not at the mean; at the mean where there are no draws.

    Args:
        scorer: The items.
        draws: As in :func:`score_model`.
        tick: As there.
    """
    if not draws.num_samples:
        return score_model(scorer, draws, tick)
    results = _results(scorer, draws, list(range(draws.num_samples)), tick)
    doubled = results if scorer.whole else [[own[0], *own] for own in results]  # ``collect`` expects a mean
    return replace(collect(doubled, getattr(scorer, "lengths", None)), log_probs=None)


def run_scorer(scorer: Scorer, draws: Draws, which: Sequence[int | None], sink: Sink) -> None:
    """Score what the sink wants; out of memory, with fewer draws side by side.

    Args:
        scorer: The items.
        draws: The model with its posterior draws.
        which: Draw numbers, None for the mean.
        sink: Where scores go; has one name per entry of ``which``.

    Raises:
        torch.OutOfMemoryError: Even one item under one parameter vector does not fit.
        ConfigError: ``scoring: batched`` was asked for and cannot be had.
    """
    variants = trusted_variants(scorer, draws, list(which))
    while True:
        try:
            scorer.run(variants, sink)
            return
        except torch.OutOfMemoryError:
            if not variants.narrow():
                raise
        torch.cuda.empty_cache()


def collect(results: Sequence[list[Any]], lengths: Sequence[Sequence[int]] | None = None) -> Scores:
    """Scores from what a sink holds, the mean first.

    Args:
        results: For every item its scores under every parameter vector, or its one record for causal_lm.
        lengths: For multiple choice, the scored tokens of every choice of every item.
    """
    if isinstance(results[0][0], dict):
        return Scores(texts=[result[0] for result in results])
    tables = [torch.tensor([_numbers(row) for row in result], dtype=torch.float64) for result in results]
    if lengths is None:
        every = torch.stack(tables)
        return Scores(every[:, 0], every[:, 1:] if every.shape[1] > 1 else None)
    width, sampled = max(map(len, lengths)), len(results[0]) > 1
    found: dict[str, list[Tensor]] = {}
    for table, sizes in zip(tables, lengths, strict=True):
        strings = torch.stack([part.sum(-1) for part in table.split(list(sizes), dim=1)], dim=1)
        own = {"log_probs": strings[0]}
        if sampled:
            own["sample_log_probs"] = strings[1:]
            own["expectation_of_products"] = strings[1:].logsumexp(0)
            mixture = table[1:].logsumexp(0) - torch.tensor(float(len(table) - 1)).double().log()
            own["product_of_expectations"] = torch.stack([p.sum() for p in mixture.split(list(sizes))])
        for name, value in own.items():
            padded = torch.nn.functional.pad(value, (0, width - len(sizes)), value=float("-inf"))
            found.setdefault(name, []).append(padded.log_softmax(-1))
    stacked: dict[str, Any] = {name: torch.stack(values) for name, values in found.items()}
    return Scores(**stacked)


def _results(
    scorer: Scorer, draws: Draws, which: Sequence[int | None], tick: Callable[[int], object]
) -> list[list[Any]]:
    """What every item got under these vectors."""
    names = [draw_name(draw, draws.antithetic) for draw in which]
    sink = Sink([str(item) for item in range(scorer.num_items)], names, tick=tick, whole=scorer.whole)
    run_scorer(scorer, draws, which, sink)
    return [sink.result(item) for item in range(scorer.num_items)]


def _numbers(row: Sequence[float | None]) -> list[float]:
    return [float("-inf") if value is None else value for value in row]
