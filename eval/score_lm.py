"""Texts for language modelling: how they are laid out, batched and run under every parameter vector.

What is computed from the passes is in :mod:`vlora.eval.token_stream`. Draws stream through its accumulators batch by
batch. Draws that are held side by side run through the trunk together and through the output head one at a time
(:mod:`vlora.eval.head`): no tensor has draws, places and vocabulary. Where a model's head cannot be run by itself, the
logits of a batch under these draws are made together, at most ``LOGIT_BUDGET`` numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.data import Encoding, Example, RowFormat, encode_continuation
from vlora.data.encode import wants_eos
from vlora.errors import DataError
from vlora.eval.batching import Batch, make_batches, run_halving, two_short
from vlora.eval.forward import Draws
from vlora.eval.head import logits_in_turn
from vlora.eval.linearised import Linearised, Wanted, WantedShare
from vlora.eval.score_trees import LOGIT_BUDGET, choose_batches
from vlora.eval.sink import Sink, draw_name
from vlora.eval.token_stream import TokenStream
from vlora.eval.tree_forward import PrefixCache, encode_prefix, tree_inputs
from vlora.eval.trees import Group, TreeBatch, Trees, lone_trees, plan_groups
from vlora.eval.variants import Variants

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextScorer", "encode_texts"]


def encode_texts(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    *,
    max_length: int,
) -> list[Encoding]:
    """Tokens of every text or prompt with response; what lies beyond ``max_length`` is not scored.

    Raises:
        DataError: An example has no token that the model could predict, or a prompt has no response.
    """
    eos = wants_eos("causal_lm", row_format)
    plain = replace(row_format, chat="never")
    encoded = []
    for example in examples:
        if row_format.prompt is None:
            prompt, text, style = "", example.text, plain
        elif example.response is not None:
            prompt, text, style = example.prompt, example.response, row_format
        else:
            raise DataError(f"{example.item}: no response to score; causal_lm needs one in every row")
        made = encode_continuation(tokenizer, prompt, text, style, append_eos=eos, max_length=max_length)
        if len(made.input_ids) <= max(made.prompt_length, 1):
            raise DataError(f"{example.item}: {text[:40]!r} has no token to score")
        encoded.append(made)
    return encoded


@dataclass(frozen=True)
class _Places:
    """Scored tokens of a batch: row in the batch, position before the token, and the token, each int64 [M]."""

    row: Tensor
    position: Tensor
    target: Tensor
    counts: list[int]  # scored tokens of each row


class TextScorer:
    """Texts tokenised and batched once, scored by as many models as wanted.

    Attributes:
        num_items: Number of texts, N.
        prompt_tokens: Length of every prompt in tokens, of a text without prompt its own, list of N.
        truncated: Of every text whether tokens were dropped.
        temperatures: Logit temperatures to score under as well, see :mod:`vlora.eval.token_stream`.
        chosen: Temperature of ``mean`` and ``samples`` to report at, see there.
    """

    temperatures: Sequence[float] = ()
    chosen: Mapping[str, float] = MappingProxyType({})
    whole = True  # whether scores belong to all parameter vectors together

    def __init__(
        self, encoded: Sequence[Encoding], *, pad_id: int, vocabulary: int, max_tokens: int, max_rows: int
    ) -> None:
        self.num_items = len(encoded)
        # a text without a prompt begins with BOS at most; its own length is the baseline then
        self.prompt_tokens = [
            made.prompt_length if made.prompt_length > 1 else len(made.input_ids) for made in encoded
        ]
        self.truncated = [made.truncated for made in encoded]
        self._encoded, self._pad_id, self._vocabulary = encoded, pad_id, vocabulary
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._first = torch.tensor([max(made.prompt_length, 1) for made in encoded])
        self._groups: list[Group] | None = None
        self.batches = self._batches(min(max_tokens, LOGIT_BUDGET // vocabulary))

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all items in full, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def groups(self) -> list[Group]:
        """Texts behind the prompts they share."""
        if self._groups is None:
            self._groups = plan_groups([[made] for made in self._encoded])
        return self._groups

    def _batches(self, max_tokens: int) -> list[Batch]:
        """Texts in full, in batches."""
        sizes = {"max_tokens": max(1, max_tokens), "max_rows": self._max_rows}
        rows = [made.input_ids for made in self._encoded]
        return make_batches({"input_ids": rows}, pad_id=self._pad_id, **sizes)

    def score(self, draws: Draws, tick: Callable[[int], object] = int) -> list[dict[str, Any]]:
        """Score all texts at the mean and under every draw.

        Args:
            draws: A causal language model in eval mode, with its posterior draws.
            tick: Called with rows times parameter vectors as they are done.

        Returns:
            One ``lm`` record a text, in the order of the input; keys of draws are None without draws.
        """
        which = [None, *range(draws.num_samples)]
        names = [draw_name(draw, draws.antithetic) for draw in which]
        sink = Sink([str(item) for item in range(self.num_items)], names, tick=tick, whole=True)
        self.run(Variants(draws, which), sink)
        return [sink.result(item)[0] for item in range(self.num_items)]

    def few(self) -> "TextScorer":
        """A scorer of two short items, to try things out on."""
        chosen = two_short(self.prompt_tokens)
        return TextScorer(
            [self._encoded[item] for item in chosen],
            pad_id=self._pad_id,
            vocabulary=self._vocabulary,
            max_tokens=self._max_tokens,
            max_rows=self._max_rows,
        )

    def run(self, variants: Variants, sink: Sink) -> None:
        """Score the texts that the sink wants under all parameter vectors, one record each."""
        if variants.shares:
            self._run_trees(variants, sink)
            return
        most = self._fit(variants, max(len(made.input_ids) for made in self._encoded))
        for batch in self._batches(min(self._max_tokens // variants.width, most)):
            if sink.wants(batch.rows.tolist()):
                self._run_batch(variants, batch, sink)

    def _run_batch(self, variants: Variants, batch: Batch, sink: Sink) -> None:
        records: dict[int, dict[str, Any]] = {}

        def work(some: Batch) -> None:
            places = self._places(some)
            stream = TokenStream(places.target, places.counts, self.temperatures, self.chosen)
            for part in variants.parts():
                logits = logits_in_turn(variants, part, some.inputs, places.row, places.position)
                stream.add_all(variants.which[part], logits)
                sink.spent(tokens=some.num_tokens * variants.cost(len(variants.which[part])))
            records.update(zip(some.rows.tolist(), stream.records(), strict=True))

        with sink.timed():
            run_halving(batch, work)
        sink.take(list(records), slice(None), list(records.values()))

    def _fit(self, variants: Variants, longest: int) -> int:
        """Hold as many vectors as the budgets allow; returns the most scored places of one vector's batch."""
        variants.fit(longest, self._max_tokens)
        places = LOGIT_BUDGET // self._vocabulary
        if variants.apart:  # logits of one vector at a time
            return places
        most = max(len(made.input_ids) for made in self._encoded)
        variants.width = max(1, min(variants.width, places // most))
        return places // variants.width

    def linearise(self, model: nn.Module, wanted: Sequence[Wanted | WantedShare], sink: Sink) -> None:
        """Covariances of the log-probability of every text, [1, 1] each, where the sink wants them."""
        linearised = Linearised(model, wanted, 1)
        lengths = [[len(m.input_ids) - max(m.prompt_length, 1)] for m in self._encoded]
        sizes = {"max_tokens": self._max_tokens, "max_rows": min(self._max_rows, linearised.max_rows)}
        for trees in lone_trees([[made] for made in self._encoded]).batches(
            **sizes, max_places=LOGIT_BUDGET // self._vocabulary
        ):
            if sink.wants(trees.items):
                linearised.strings(trees, self._pad_id, lengths, sink)

    def _run_trees(self, variants: Variants, sink: Sink) -> None:
        places = self._fit(variants, max(len(tree.tokens) for group in self.groups for tree in group.trees))
        sizes = (variants.width, self._max_tokens, self._max_rows, places)
        for group in self.groups:
            todo = choose_batches(group, sink, slice(None), *sizes)
            prefixes: list[PrefixCache | None] = []
            for part in variants.parts() if todo and group.prefix else ():
                with variants.holding(part) as count, sink.timed():
                    prefixes.append(encode_prefix(variants.model, group.prefix, count))
                sink.spent(tokens=len(group.prefix) * variants.cost(count))
            for trees in todo:
                self._run_chains(variants, trees, prefixes, sink)

    def _run_chains(
        self, variants: Variants, trees: Trees, prefixes: Sequence[PrefixCache | None], sink: Sink
    ) -> None:
        records: dict[int, dict[str, Any]] = {}

        def work(some: Trees) -> None:
            batch = TreeBatch.of(some.trees, self._pad_id)
            stream = TokenStream(batch.targets, batch.counts, self.temperatures, self.chosen)
            for number, part in enumerate(variants.parts()):
                inputs, cache = tree_inputs(variants.model, batch, prefixes[number] if prefixes else None)
                logits = logits_in_turn(variants, part, inputs, batch.rows, batch.nodes, **cache)
                stream.add_all(variants.which[part], logits)
                sink.spent(tokens=batch.num_tokens * variants.cost(len(variants.which[part])))
            records.update(zip(some.items, stream.records(), strict=True))

        with sink.timed():
            run_halving(trees, work)
        sink.take(list(records), slice(None), list(records.values()))

    def _places(self, batch: Batch) -> _Places:
        """Scored tokens of a batch."""
        length = batch.inputs["input_ids"].shape[1]
        scored = batch.inputs["attention_mask"].bool() & (
            torch.arange(length) >= self._first[batch.rows][:, None]
        )
        row, position = scored.nonzero(as_tuple=True)
        target = batch.inputs["input_ids"][row, position]
        return _Places(row, position - 1, target, scored.sum(-1).tolist())
