"""Scores of sequence classification: the log-probability of every class for every item."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.data import Example
from vlora.eval.batching import Batch, make_batches, run_halving, two_short
from vlora.eval.forward import class_log_probs
from vlora.eval.linearised import Linearised, Wanted, WantedShare
from vlora.eval.sink import Sink
from vlora.eval.variants import Variants

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LabelScorer"]


class LabelScorer:
    """Items tokenised and batched once, scored by as many models and draws as wanted.

    Attributes:
        num_items: Number of items, N.
        num_choices: Number of classes of every item, int64 [N].
        prompt_tokens: Length of every item in tokens, list of N.
        truncated: Of every item whether tokens were dropped, list of N.
    """

    whole = False  # whether scores belong to all parameter vectors together

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
        texts = [example.text for example in examples]
        pairs = [example.text_pair for example in examples] if examples[0].text_pair is not None else None
        encoded: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length)  # type: ignore[arg-type]
        self.truncated = _truncated(tokenizer, texts, pairs, encoded["input_ids"], max_length)
        self._pad_id: Any = tokenizer.pad_token_id
        self._max_tokens, self._max_rows, self._num_labels = max_tokens, max_rows, num_labels
        self._take({name: encoded[name] for name in encoded if name != "attention_mask"})

    def _take(self, features: Mapping[str, Any]) -> None:
        """Batch the tokens of some items."""
        self._features = features
        self.batches = self._batches(self._max_tokens)
        self.num_items = len(features["input_ids"])
        self.num_choices = torch.full((self.num_items,), self._num_labels)
        self.prompt_tokens = [len(ids) for ids in features["input_ids"]]

    def _batches(self, max_tokens: int) -> list[Batch]:
        sizes = {"max_tokens": max(1, max_tokens), "max_rows": self._max_rows}
        return make_batches(self._features, pad_id=self._pad_id, **sizes)

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all items, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    @torch.inference_mode()
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
            scores[batch.rows] = class_log_probs(model, batch)[0]

        for batch in self.batches:
            run_halving(batch, work)
            tick(len(batch.rows))
        return scores

    def few(self) -> "LabelScorer":
        """A scorer of two short items, to try things out on."""
        chosen = two_short(self.prompt_tokens)
        scorer = copy(self)
        scorer.truncated = [self.truncated[item] for item in chosen]
        scorer._take({name: [values[item] for item in chosen] for name, values in self._features.items()})
        return scorer

    def run(self, variants: Variants, sink: Sink) -> None:
        """Score all items that the sink wants under all parameter vectors: float64 [count, K] each."""
        variants.fit(max(self.prompt_tokens), self._max_tokens)
        batches = self._batches(self._max_tokens // variants.width)
        for part in variants.parts():
            with variants.holding(part) as count:
                for batch in batches:
                    if sink.wants(batch.rows.tolist(), part):
                        self._run_batch(variants, batch, part, count, sink)

    def linearise(self, model: nn.Module, wanted: Sequence[Wanted | WantedShare], sink: Sink) -> None:
        """Covariances of the logits of every item, [K, K] each, where the sink wants them."""
        linearised = Linearised(model, wanted, self._num_labels)
        sizes = {"max_tokens": self._max_tokens, "max_rows": min(self._max_rows, linearised.max_rows)}
        for batch in make_batches(self._features, pad_id=self._pad_id, **sizes):
            if sink.wants(batch.rows.tolist()):
                linearised.labels(batch, sink)

    def _run_batch(self, variants: Variants, batch: Batch, part: slice, count: int, sink: Sink) -> None:
        found: dict[int, Tensor] = {}

        def work(some: Batch) -> None:
            values = class_log_probs(variants.model, some, count)
            found.update(zip(some.rows.tolist(), values.unbind(1), strict=True))

        with sink.timed():
            run_halving(batch, work)
        tokens = batch.num_tokens * variants.cost(count)
        sink.take(list(found), part, list(found.values()), tokens=tokens)


def _truncated(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    pairs: Sequence[Any] | None,
    ids: Sequence[Sequence[int]],
    max_length: int,
) -> list[bool]:
    """Whether each text lost tokens; only those that fill the limit are tokenised again, whole."""
    found = [False] * len(texts)
    full = [row for row, own in enumerate(ids) if len(own) >= max_length]
    if full:
        second: Any = None if pairs is None else [pairs[row] for row in full]
        whole: Any = tokenizer([texts[row] for row in full], second, verbose=False)
        for row, own in zip(full, whole["input_ids"], strict=True):
            found[row] = len(own) > len(ids[row])
    return found
