"""Scores of sequence classification: the log-probability of every class for every item."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.data import Example
from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.forward import class_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LabelScorer"]


class LabelScorer:
    """Items tokenised and batched once, scored by as many models and draws as wanted.

    Attributes:
        num_items: Number of items, N.
        num_choices: Number of classes of every item, int64 [N].
        prompt_tokens: Length of every item in tokens, list of N.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        num_labels: int,
        max_length: int,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        pairs: Any = (
            [example.text_pair for example in examples] if examples[0].text_pair is not None else None
        )
        encoded: Any = tokenizer(
            [example.text for example in examples], pairs, truncation=True, max_length=max_length
        )
        features = {name: encoded[name] for name in encoded if name != "attention_mask"}
        pad_id: Any = tokenizer.pad_token_id
        self.batches = make_batches(features, pad_id=pad_id, max_tokens=max_tokens, max_rows=max_rows)
        self.num_items = len(examples)
        self.num_choices = torch.full((self.num_items,), num_labels)
        self.prompt_tokens = [len(ids) for ids in features["input_ids"]]

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all items, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    def score(self, model: nn.Module, tick: Callable[[int], object] = int) -> Tensor:
        """One pass over all items with the parameters as they are.

        Args:
            model: A sequence classifier in eval mode.
            tick: Called with the number of rows done after each batch.

        Returns:
            ``log p(k | x)``, float64 [N, K] in the order of the input.
        """
        scores = torch.full((self.num_items, int(self.num_choices[0])), float("nan"), dtype=torch.float64)

        def work(batch: Batch) -> None:
            scores[batch.rows] = class_log_probs(model, batch)

        for batch in self.batches:
            run_halving(batch, work)
            tick(len(batch.rows))
        return scores
