r"""Scores of language modelling: per-token and per-string predictives at the mean and under posterior draws.

For the scored tokens ``y_1 .. y_T`` of a string and S draws (Malinin and Gales 2021, arXiv:2002.07650):

- at the mean: ``nll = -sum_t log p(y_t | y_<t)``, and for every token whether the top token is right, its
  probability (confidence) and the entropy in nats;
- product of expectations, the per-token mixture: ``nll_samples = -sum_t log (1/S) sum_s p_s(y_t | y_<t)``;
- expectation of products, the posterior predictive of the string:
  ``nll_sequence = -log (1/S) sum_s prod_t p_s(y_t | y_<t)``;
- total entropy of a token ``H((1/S) sum_s p_s)`` and expected entropy ``(1/S) sum_s H(p_s)``, so that their
  difference is the mutual information between token and parameters.

Draws stream through two accumulators per batch, the log-mixture [M, V] and the entropies [M], where M counts scored
tokens; the samples are never held together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.data import Encoding, Example, RowFormat, encode_continuation
from vlora.data.encode import wants_eos
from vlora.errors import DataError
from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.forward import Draws, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextScorer", "encode_texts"]

_LOGIT_BUDGET = 2**27  # scored tokens times vocabulary in one batch: half a gigabyte per float32 accumulator
_DECIMALS = 6


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
    """

    def __init__(
        self, encoded: Sequence[Encoding], *, pad_id: int, vocabulary: int, max_tokens: int, max_rows: int
    ) -> None:
        self.num_items = len(encoded)
        # a text without a prompt begins with BOS at most; its own length is the baseline then
        self.prompt_tokens = [
            made.prompt_length if made.prompt_length > 1 else len(made.input_ids) for made in encoded
        ]
        self._first = torch.tensor([max(made.prompt_length, 1) for made in encoded])
        self.batches = make_batches(
            {"input_ids": [made.input_ids for made in encoded]},
            pad_id=pad_id,
            max_tokens=max(1, min(max_tokens, _LOGIT_BUDGET // vocabulary)),
            max_rows=max_rows,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of one pass over all items, padding included."""
        return sum(batch.num_tokens for batch in self.batches)

    def score(self, draws: Draws, tick: Callable[[int], object] = int) -> list[dict[str, Any]]:
        """Score all texts at the mean and under every draw.

        Args:
            draws: A causal language model in eval mode, with its posterior draws.
            tick: Called with the number of rows done after each pass over a batch.

        Returns:
            One ``lm`` record a text, in the order of the input; keys of draws are None without draws.
        """
        records: list[dict[str, Any]] = [{} for _ in range(self.num_items)]

        def work(batch: Batch) -> None:
            places = self._places(batch)
            columns = _at_mean(draws, batch, places)
            columns |= _under_draws(draws, batch, places)
            for row, record in zip(batch.rows.tolist(), _split(columns, places), strict=True):
                records[row] = record

        for batch in self.batches:
            run_halving(batch, work)
            tick(len(batch.rows) * (1 + draws.num_samples))
        return records

    def _places(self, batch: Batch) -> _Places:
        """Scored tokens of a batch."""
        length = batch.inputs["input_ids"].shape[1]
        scored = batch.inputs["attention_mask"].bool() & (
            torch.arange(length) >= self._first[batch.rows][:, None]
        )
        row, position = scored.nonzero(as_tuple=True)
        target = batch.inputs["input_ids"][row, position]
        return _Places(row, position - 1, target, scored.sum(-1).tolist())


def _at_mean(draws: Draws, batch: Batch, places: _Places) -> dict[str, Tensor | None]:
    """Columns of the mean: per token [M]."""
    with draws.at(None):
        log_probs = token_log_probs(draws.model, batch, places.row, places.position)
    confidence, correct = _top(log_probs, places)
    return {
        "nll": -_realised(log_probs, places),
        "correct": correct,
        "confidence": confidence,
        "entropy": _entropy(log_probs),
    }


def _under_draws(draws: Draws, batch: Batch, places: _Places) -> dict[str, Tensor | None]:
    """Columns of the draws: per token [M], and ``nll_sequence`` per row [B]; all None without draws."""
    names = ("nll_samples", "nll_sequence", "sample_correct", "sample_confidence", "total_entropy")
    if draws.num_samples == 0:
        return dict.fromkeys((*names, "expected_entropy"))
    mixture, entropies, strings = torch.empty(0), [], []
    for draw in range(draws.num_samples):
        with draws.at(draw):
            log_probs = token_log_probs(draws.model, batch, places.row, places.position)
        mixture = log_probs if draw == 0 else torch.logaddexp(mixture, log_probs)
        entropies.append(_entropy(log_probs))
        realised = _realised(log_probs, places)
        strings.append(torch.zeros(len(places.counts)).double().index_add(0, places.row, realised))
    count = torch.tensor(float(draws.num_samples), dtype=torch.float64).log()
    mixture = mixture - count.to(mixture)
    confidence, correct = _top(mixture, places)
    values = (
        -_realised(mixture, places),
        count - torch.stack(strings).logsumexp(0),
        correct,
        confidence,
        _entropy(mixture),
    )
    return {**dict(zip(names, values, strict=True)), "expected_entropy": torch.stack(entropies).mean(0)}


def _realised(log_probs: Tensor, places: _Places) -> Tensor:
    """Log-probability of the token that is there, float64 CPU [M]."""
    target = places.target.to(log_probs.device)
    return log_probs.gather(-1, target[:, None])[:, 0].double().cpu()


def _top(log_probs: Tensor, places: _Places) -> tuple[Tensor, Tensor]:
    """Probability of the most likely token, and whether it is the one that is there."""
    value, index = log_probs.max(-1)
    return value.double().exp().cpu(), (index.cpu() == places.target).long()


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats, float64 CPU [M]; a probability that underflows to 0 adds 0."""
    return -(log_probs.exp() * log_probs.clamp_min(-1e4)).sum(-1).double().cpu()


def _split(columns: dict[str, Tensor | None], places: _Places) -> list[dict[str, Any]]:
    """Cut the columns of a batch into one record a row: sums for ``nll*``, lists of tokens for the rest."""
    records: list[dict[str, Any]] = [{"num_tokens": count} for count in places.counts]
    for name, column in columns.items():
        if column is None:
            values: Sequence[Any] = [None] * len(records)
        elif name == "nll_sequence":
            values = column.tolist()
        elif name.startswith("nll"):
            values = [part.sum().item() for part in column.split(places.counts)]
        else:
            rounded = column if column.dtype == torch.long else column.round(decimals=_DECIMALS)
            values = [part.tolist() for part in rounded.split(places.counts)]
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return records
