r"""Scores of multiple choice: the likelihood of every choice as a continuation of the prompt.

For choice c of item x with tokens ``c_1 .. c_T``: ``log p(c | x) = sum_t log p(c_t | x, c_<t)``, then a softmax over
the choices of the item, all under one parameter vector. Nothing is divided by length.

An item's choices share forward passes wherever they share tokens. The last token of a choice is never fed in, so all
one-token choices of a prompt need only the prompt: one row, one position, K gathered logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlora.data import Encoding, Example, RowFormat, encode_continuation
from vlora.data.encode import wants_eos
from vlora.errors import DataError
from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.forward import token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChoiceScorer", "encode_choices"]


@dataclass(frozen=True)
class _Queries:
    """Tokens to look up, sorted by row: ``log p(target | row up to position)`` adds to a slot."""

    row: Tensor
    position: Tensor
    target: Tensor
    slot: Tensor
    offset: Tensor  # queries of row r are offset[r] : offset[r + 1]


def encode_choices(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    *,
    max_length: int,
) -> list[list[Encoding]]:
    """Tokens of every choice of every item, each with its prompt.

    Raises:
        DataError: A choice has no token of its own that the model could predict.
    """
    eos = wants_eos("multiple_choice", row_format)
    encoded = []
    for example in examples:
        choices = [
            encode_continuation(
                tokenizer, example.prompt, choice, row_format, append_eos=eos, max_length=max_length
            )
            for choice in example.choices or ()
        ]
        for choice, made in zip(example.choices or (), choices, strict=True):
            if len(made.input_ids) <= max(made.prompt_length, 1):
                raise DataError(f"{example.item}: choice {choice!r} has no token to score after the prompt")
        encoded.append(choices)
    return encoded


class ChoiceScorer:
    """Items tokenised and batched once, scored by as many models and draws as wanted.

    Attributes:
        num_items: Number of items, N.
        num_choices: Number of choices of every item, int64 [N]; K is the largest.
        prompt_tokens: Length of every prompt in tokens, list of N.
    """

    def __init__(
        self, encoded: Sequence[Sequence[Encoding]], *, pad_id: int, max_tokens: int, max_rows: int
    ) -> None:
        self.num_items = len(encoded)
        self.num_choices = torch.tensor([len(choices) for choices in encoded])
        self.prompt_tokens = [choices[0].prompt_length for choices in encoded]
        rows, self._queries = _plan(encoded, int(self.num_choices.max()))
        self.batches = make_batches(
            {"input_ids": rows}, pad_id=pad_id, max_tokens=max_tokens, max_rows=max_rows
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all items, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    def score(self, model: nn.Module, tick: Callable[[int], object] = int) -> Tensor:
        """One pass over all items with the parameters as they are.

        Args:
            model: A causal language model in eval mode.
            tick: Called with the number of rows done after each batch.

        Returns:
            ``log p(k | x)`` normalised over the choices of each item, float64 [N, K] in the order of the input;
            minus infinity beyond an item's own number of choices.
        """
        largest = int(self.num_choices.max())
        sums = torch.zeros(self.num_items * largest, dtype=torch.float64)

        def work(batch: Batch) -> None:
            chosen, row = self._queries_of(batch)
            slots, values = self._look_up(model, batch, chosen, row)
            sums.index_add_(0, slots, values)

        for batch in self.batches:
            run_halving(batch, work)
            tick(len(batch.rows))
        missing = torch.arange(largest) >= self.num_choices[:, None]
        return sums.view(self.num_items, largest).masked_fill(missing, float("-inf")).log_softmax(-1)

    def _queries_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries of a batch, and the row within the batch that each of them reads."""
        start, stop = self._queries.offset[batch.rows], self._queries.offset[batch.rows + 1]
        counts = stop - start
        row = torch.repeat_interleave(torch.arange(len(batch.rows)), counts)
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[row]
        return start[row] + within, row

    def _look_up(self, model: nn.Module, batch: Batch, chosen: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """Slots and log-probabilities of the chosen queries; each place is normalised once."""
        width = batch.inputs["input_ids"].shape[1]
        places, place = (row * width + self._queries.position[chosen]).unique(return_inverse=True)
        log_probs = token_log_probs(model, batch, places // width, places % width)
        found = log_probs[place.to(log_probs.device), self._queries.target[chosen].to(log_probs.device)]
        return self._queries.slot[chosen], found.double().cpu()


def _plan(encoded: Sequence[Sequence[Encoding]], largest: int) -> tuple[list[list[int]], _Queries]:
    """Rows to run and tokens to look up in them."""
    rows: list[list[int]] = []
    queries: list[tuple[int, int, int, int]] = []
    for item, choices in enumerate(encoded):
        own: list[int] = []  # rows of this item, longest first
        for index in sorted(range(len(choices)), key=lambda index: -len(choices[index].input_ids)):
            ids, first = choices[index].input_ids, max(choices[index].prompt_length, 1)
            fed = ids[:-1]
            row = next((row for row in own if rows[row][: len(fed)] == fed), None)
            if row is None:
                row = len(rows)
                rows.append(fed)
                own.append(row)
            slot = item * largest + index
            queries.extend((row, position - 1, ids[position], slot) for position in range(first, len(ids)))
    table = torch.tensor(sorted(queries), dtype=torch.long)
    offset = torch.searchsorted(table[:, 0].contiguous(), torch.arange(len(rows) + 1))
    return rows, _Queries(table[:, 0], table[:, 1], table[:, 2], table[:, 3], offset)
