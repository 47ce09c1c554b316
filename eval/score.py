"""Scoring one model: its items at the posterior mean and under every draw, whatever the task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.data import Example, RowFormat, Task
from vlora.data.encode import fitting_length
from vlora.eval.forward import Draws
from vlora.eval.score_choices import ChoiceScorer, encode_choices
from vlora.eval.score_labels import LabelScorer
from vlora.eval.score_lm import TextScorer, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Scorer", "Scores", "build_scorer", "score_model"]

Scorer = LabelScorer | ChoiceScorer | TextScorer


@dataclass(frozen=True)
class Scores:
    """What one model says about all items, in their order.

    Attributes:
        log_probs: At the mean, ``log p(k | x)`` normalised over k, float64 [N, K]; None for causal_lm.
        sample_log_probs: Under each draw, float64 [N, S, K]; None without draws and for causal_lm.
        texts: One ``lm`` record an item for causal_lm, else None.
    """

    log_probs: Tensor | None = None
    sample_log_probs: Tensor | None = None
    texts: list[dict[str, Any]] | None = None


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
    if task == "multiple_choice":
        choices = encode_choices(examples, tokenizer, row_format, max_length=max_length)
        return ChoiceScorer(choices, pad_id=pad_id, **sizes)
    texts = encode_texts(examples, tokenizer, row_format, max_length=max_length)
    vocabulary = model_config.get_text_config().vocab_size
    return TextScorer(texts, pad_id=pad_id, vocabulary=vocabulary, **sizes)


def score_model(scorer: Scorer, draws: Draws, tick: Callable[[int], object] = int) -> Scores:
    """Score all items at the mean, then under every draw, each draw shared by all items.

    Args:
        scorer: The items.
        draws: The model, in eval mode, with its posterior draws. Its parameters are afterwards what they were.
        tick: Called with the number of rows done as they are done.
    """
    if isinstance(scorer, TextScorer):
        return Scores(texts=scorer.score(draws, tick))
    mean = scorer.score(draws.model, tick)
    samples = []
    for draw in range(draws.num_samples):
        with draws.at(draw):
            samples.append(scorer.score(draws.model, tick))
    return Scores(log_probs=mean, sample_log_probs=torch.stack(samples, dim=1) if samples else None)
