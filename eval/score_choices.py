r"""Scores of multiple choice: the likelihood of every choice as a continuation of the prompt.

For choice c of item x with tokens ``c_1 .. c_T``: ``log p(c | x) = sum_t log p(c_t | x, c_<t)``, all under one
parameter vector. Nothing is divided by length.

An item's choices share forward passes wherever they share tokens, and items where their prompts begin alike
(:mod:`vlora.eval.trees`). Without that, every row is run in full; then the last token of a choice is still never fed
in, so all one-token choices of a prompt need only the prompt: one row, one position, K gathered logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlora.data import Encoding, Example, RowFormat, encode_continuation
from vlora.data.encode import wants_eos
from vlora.errors import DataError
from vlora.eval.batching import Batch, make_batches, run_halving, two_short
from vlora.eval.forward import gather_log_probs, place_logits
from vlora.eval.linearised import Linearised, Wanted, WantedShare
from vlora.eval.score_trees import LOGIT_BUDGET, choose_batches, run_batch
from vlora.eval.sink import Sink
from vlora.eval.tree_forward import encode_prefix
from vlora.eval.trees import Group, lone_trees, plan_groups
from vlora.eval.variants import Variants

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChoiceScorer", "encode_choices"]


@dataclass(frozen=True)
class _Queries:
    """Tokens to look up, sorted by row: ``log p(target | row up to position)``, and their place in the output."""

    row: Tensor
    position: Tensor
    target: Tensor
    number: Tensor
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
        lengths: Scored tokens of every choice of every item.
        truncated: Of every item whether tokens of its prompt or a choice were dropped.
    """

    whole = False  # whether scores belong to all parameter vectors together

    def __init__(
        self,
        encoded: Sequence[Sequence[Encoding]],
        *,
        pad_id: int,
        max_tokens: int,
        max_rows: int,
        vocabulary: int = 1,
    ) -> None:
        self.num_items = len(encoded)
        self.num_choices = torch.tensor([len(choices) for choices in encoded])
        self.prompt_tokens = [choices[0].prompt_length for choices in encoded]
        self.lengths = [[len(c.input_ids) - max(c.prompt_length, 1) for c in choices] for choices in encoded]
        self.truncated = [any(choice.truncated for choice in choices) for choices in encoded]
        self._encoded, self._pad_id, self._vocabulary = encoded, pad_id, vocabulary
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._groups: list[Group] | None = None
        self._rows, self._queries = _plan(encoded)
        self.batches = self._batches(max_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all rows in full, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def groups(self) -> list[Group]:
        """Items as token trees behind the prefixes they share."""
        if self._groups is None:
            self._groups = plan_groups(self._encoded)
        return self._groups

    def _batches(self, max_tokens: int) -> list[Batch]:
        """Rows in full, in batches."""
        sizes = {"max_tokens": max(1, max_tokens), "max_rows": self._max_rows}
        return make_batches({"input_ids": self._rows}, pad_id=self._pad_id, **sizes)

    @torch.inference_mode()
    def score(self, model: nn.Module, tick: Callable[[int], object] = int) -> Tensor:
        """One pass over all items with the parameters as they are, every row in full.

        Args:
            model: A causal language model in eval mode.
            tick: Called with the number of rows done after each batch.

        Returns:
            ``log p(k | x)`` normalised over the choices of each item, float64 [N, K] in the order of the input;
            minus infinity beyond an item's own number of choices.
        """
        values = self._pass(model, self.batches, tick=tick)[0].split(
            [sum(lengths) for lengths in self.lengths]
        )
        largest = int(self.num_choices.max())
        scores = torch.full((self.num_items, largest), float("-inf"), dtype=torch.float64)
        for row, (value, lengths) in enumerate(zip(values, self.lengths, strict=True)):
            scores[row, : len(lengths)] = torch.stack([part.sum() for part in value.split(lengths)])
        return scores.log_softmax(-1)

    def few(self) -> "ChoiceScorer":
        """A scorer of two short items, to try things out on."""
        chosen = two_short(self.prompt_tokens)
        return ChoiceScorer(
            [self._encoded[item] for item in chosen],
            pad_id=self._pad_id,
            max_tokens=self._max_tokens,
            max_rows=self._max_rows,
            vocabulary=self._vocabulary,
        )

    def run(self, variants: Variants, sink: Sink) -> None:
        """Score all items that the sink wants under all parameter vectors.

        Each item gives the log-probabilities of its choices' tokens, choice after choice, float64 [count, tokens].
        """
        if variants.shares:
            self._run_trees(variants, sink)
            return
        variants.fit(max(map(len, self._rows)), self._max_tokens)
        batches, items = self._batches(self._max_tokens // variants.width), list(range(self.num_items))
        for part in variants.parts():
            if not sink.wants(items, part):
                continue
            with variants.holding(part) as count, sink.timed():
                found = self._pass(variants.model, batches, count)
            values = found.split([sum(lengths) for lengths in self.lengths], dim=1)
            sink.take(items, part, values, tokens=self.num_tokens * variants.cost(count))

    def linearise(self, model: nn.Module, wanted: Sequence[Wanted | WantedShare], sink: Sink) -> None:
        """Covariances of the choices' log-likelihoods of every item, [K, K] each, where the sink wants them."""
        linearised = Linearised(model, wanted, int(self.num_choices.max()))
        sizes = {"max_tokens": self._max_tokens, "max_rows": min(self._max_rows, linearised.max_rows)}
        for trees in lone_trees(self._encoded).batches(**sizes, max_places=LOGIT_BUDGET // self._vocabulary):
            if sink.wants(trees.items):
                linearised.strings(trees, self._pad_id, self.lengths, sink)

    def _run_trees(self, variants: Variants, sink: Sink) -> None:
        longest = max(len(tree.tokens) for group in self.groups for tree in group.trees)
        variants.fit(longest, self._max_tokens)
        places = LOGIT_BUDGET // (self._vocabulary * variants.width)
        for part in variants.parts():
            with variants.holding(part) as count:
                for group in self.groups:
                    todo = choose_batches(group, sink, part, count, self._max_tokens, self._max_rows, places)
                    if not todo:
                        continue
                    with sink.timed():
                        prefix = encode_prefix(variants.model, group.prefix, count) if group.prefix else None
                    sink.spent(tokens=len(group.prefix) * variants.cost(count))
                    for trees in todo:
                        run_batch(variants, trees, prefix, self._pad_id, part, sink)

    def _pass(
        self, model: nn.Module, batches: Sequence[Batch], count: int = 1, tick: Callable[[int], object] = int
    ) -> Tensor:
        """Log-probability of every scored token, item after item, float64 [count, tokens]."""
        found = torch.empty(count, len(self._queries.number), dtype=torch.float64)

        def work(batch: Batch) -> None:
            chosen, row = self._queries_of(batch)
            found[:, self._queries.number[chosen]] = self._look_up(model, batch, chosen, row, count)

        for batch in batches:
            run_halving(batch, work)
            tick(len(batch.rows))
        return found

    def _queries_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries of a batch, and the row within the batch that each of them reads."""
        start, stop = self._queries.offset[batch.rows], self._queries.offset[batch.rows + 1]
        counts = stop - start
        row = torch.repeat_interleave(torch.arange(len(batch.rows)), counts)
        within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts)[row]
        return start[row] + within, row

    def _look_up(self, model: nn.Module, batch: Batch, chosen: Tensor, row: Tensor, count: int) -> Tensor:
        """Log-probabilities of the chosen queries [count, queries]; each place is normalised once."""
        width = batch.inputs["input_ids"].shape[1]
        places, place = (row * width + self._queries.position[chosen]).unique(return_inverse=True)
        logits = place_logits(model, batch.inputs, places // width, places % width, count)
        return gather_log_probs(logits, place, self._queries.target[chosen])


def _plan(encoded: Sequence[Sequence[Encoding]]) -> tuple[list[list[int]], _Queries]:
    """Rows to run and tokens to look up in them."""
    rows: list[list[int]] = []
    queries: list[tuple[int, int, int, int]] = []
    done = 0
    for choices in encoded:
        own: list[int] = []  # rows of this item, longest first
        starts = [max(choice.prompt_length, 1) for choice in choices]
        sizes = [len(choice.input_ids) - first for choice, first in zip(choices, starts, strict=True)]
        for index in sorted(range(len(choices)), key=lambda index: -len(choices[index].input_ids)):
            ids, first = choices[index].input_ids, starts[index]
            fed = ids[:-1]
            row = next((row for row in own if rows[row][: len(fed)] == fed), None)
            if row is None:
                row = len(rows)
                rows.append(fed)
                own.append(row)
            number = done + sum(sizes[:index]) - first
            queries.extend((row, at - 1, ids[at], number + at) for at in range(first, len(ids)))
        done += sum(sizes)
    table = torch.tensor(sorted(queries), dtype=torch.long)
    offset = torch.searchsorted(table[:, 0].contiguous(), torch.arange(len(rows) + 1))
    return rows, _Queries(table[:, 0], table[:, 1], table[:, 2], table[:, 3], offset)
