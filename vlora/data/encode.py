"""From examples to rows of tokens and labels for training.

The loss is on the response only (prompted tasks), on every token (plain text), or on one class a row.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora.data.config import RowFormat, Task
from vlora.data.continuation import encode_continuation, token_ids
from vlora.data.examples import Example
from vlora.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORE",
    "EncodedDataset",
    "data_collator",
    "encode_examples",
    "fitting_length",
    "wants_eos",
]

IGNORE = -100  # the label that torch's cross-entropy and transformers leave out of the loss


class EncodedDataset:
    """Token rows for a ``DataLoader``, int32 inside, with counts of what encoding did.

    Attributes:
        num_examples: Examples that came in (packing makes fewer or more rows of them).
        num_truncated: Examples that lost tokens to ``max_length``.
        num_tokens: Tokens of all rows.
        num_target_tokens: Tokens that carry a loss (for classification: one a row).
    """

    def __init__(self, num_examples: int) -> None:
        self.num_examples = num_examples
        self.num_truncated = 0
        self.num_tokens = 0
        self.num_target_tokens = 0
        self._rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Add one row of lists (tokens, labels) and single labels."""
        self.num_tokens += len(row["input_ids"])
        labels = row["labels"]
        # The first token has nothing before it, so a causal model never predicts it.
        self.num_target_tokens += 1 if isinstance(labels, int) else sum(x != IGNORE for x in labels[1:])
        self._rows.append(
            {k: v if isinstance(v, int) else np.asarray(v, dtype=np.int32) for k, v in row.items()}
        )

    def sha256(self) -> str:
        """Hash of every row, so that a resumed run can tell that the data are still the same."""
        digest = hashlib.sha256()
        for row in self._rows:
            for name, value in row.items():
                digest.update(f"{name}:".encode())
                digest.update(str(value).encode() if isinstance(value, int) else value.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row, as the lists that collators expect."""
        return {k: v if isinstance(v, int) else v.tolist() for k, v in self._rows[index].items()}


def encode_examples(
    task: Task,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    *,
    max_length: int | None = None,
) -> EncodedDataset:
    """Encode examples for training: labels on the response, on the whole text, or one class a row.

    Args:
        task: What the examples are for.
        examples: Examples with labels or responses.
        tokenizer: Tokenizer of the base model.
        row_format: Separator, chat template, end-of-sequence, packing.
        max_length: Tokens that fit, normally from :func:`fitting_length`; None takes
            ``row_format.max_length``.

    Raises:
        DataError: an example with nothing to learn, or a chat template that is missing or fails.
    """
    limit = max_length or row_format.max_length
    if task == "sequence_classification":
        return _encode_classification(examples, tokenizer, limit)
    if examples and examples[0].response is not None:
        return _encode_responses(task, examples, tokenizer, row_format, limit)
    return _encode_text(task, examples, tokenizer, row_format, limit)


def wants_eos(task: Task, row_format: RowFormat) -> bool:
    """Whether sequences of this task end with EOS: as configured, else for causal_lm only."""
    return row_format.append_eos if row_format.append_eos is not None else task == "causal_lm"


def fitting_length(
    row_format: RowFormat,
    tokenizer: "PreTrainedTokenizerBase",
    model_config: Any,
    *,
    num_virtual_tokens: int = 0,
) -> int:
    """Longest sequence in tokens that the configuration, the tokenizer and the model all allow.

    ``num_virtual_tokens`` of a prompt-learning adapter take positions of the model away from the text.
    """
    limits = [row_format.max_length, tokenizer.model_max_length]
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions:
        limits.append(max(1, positions - num_virtual_tokens))
    return int(min(limits))


def data_collator(task: Task, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The collator of ``transformers`` that pads rows of :class:`EncodedDataset` for this task."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    if task == "sequence_classification":
        return DataCollatorWithPadding(tokenizer)
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORE)


def _encode_classification(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", limit: int
) -> EncodedDataset:
    """Text or pair, truncated at the end, with the class index."""
    encoded = EncodedDataset(len(examples))
    for example in examples:
        if example.label is None:
            raise DataError(f"{example.item}: no label to learn from")
        row = dict(tokenizer(example.text, example.text_pair, truncation=True, max_length=limit))
        if len(row["input_ids"]) == limit:
            whole = tokenizer(example.text, example.text_pair, verbose=False)
            encoded.num_truncated += len(whole["input_ids"]) > limit
        encoded.append({**row, "labels": example.label})
    return encoded


def _encode_responses(
    task: Task,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    limit: int,
) -> EncodedDataset:
    """Prompt and right response; the loss is on the response only."""
    encoded = EncodedDataset(len(examples))
    eos = wants_eos(task, row_format)
    for example in examples:
        made = encode_continuation(
            tokenizer,
            example.prompt,
            example.response or "",
            row_format,
            append_eos=eos,
            max_length=limit,
        )
        labels = [IGNORE] * made.prompt_length + made.input_ids[made.prompt_length :]
        if not any(label != IGNORE for label in labels[1:]):
            raise DataError(f"{example.item}: the response {example.response!r:.40} has no token to learn")
        encoded.num_truncated += made.truncated
        encoded.append(_causal_row(made.input_ids, labels))
    return encoded


def _encode_text(
    task: Task,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    limit: int,
) -> EncodedDataset:
    """Plain text with the loss on every token: one row a text, or packed blocks."""
    encoded = EncodedDataset(len(examples))
    eos = (
        [tokenizer.eos_token_id] if wants_eos(task, row_format) and tokenizer.eos_token_id is not None else []
    )
    texts = ([*token_ids(tokenizer, example.text), *eos] for example in examples)
    if row_format.packing:
        joined = [token for ids in texts for token in ids]
        texts = (joined[start : start + limit] for start in range(0, len(joined), limit))
    for ids in texts:
        encoded.num_truncated += len(ids) > limit
        if len(ids) > 1:  # a single token has nothing to predict
            encoded.append(_causal_row(ids[:limit], ids[:limit]))
    if not len(encoded):
        raise DataError("no text has two tokens or more, so there is nothing to learn")
    return encoded


def _causal_row(ids: list[int], labels: list[int]) -> dict[str, Any]:
    """One unpadded row of a causal model."""
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
