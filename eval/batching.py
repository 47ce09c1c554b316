"""Length-sorted batches under a token budget, built once and reused by every model and every posterior draw.

Padding always goes to the right, whatever the tokenizer's own side: under a causal mask the real positions
never see it, and absolute position ids need no shifting, so a padded row scores as it would alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

__all__ = ["Batch", "make_batches", "run_halving", "two_short"]


@dataclass(frozen=True)
class Batch:
    """Some rows of the input, padded to one length.

    Attributes:
        rows: Index of each row in the input, shape [B], longest first.
        inputs: ``input_ids``, ``attention_mask`` and whatever else the tokenizer gave, each int64 [B, T].
    """

    rows: Tensor
    inputs: Mapping[str, Tensor]

    @property
    def num_tokens(self) -> int:
        """Tokens sent through the model, padding included."""
        return self.inputs["input_ids"].numel()

    def __len__(self) -> int:
        """Rows of the batch, B."""
        return len(self.rows)

    def halves(self) -> "list[Batch]":
        """The batch cut in two, for a second try in less memory."""
        middle = (len(self.rows) + 1) // 2
        return [
            Batch(self.rows[part], {name: tensor[part] for name, tensor in self.inputs.items()})
            for part in (slice(None, middle), slice(middle, None))
        ]


def make_batches(
    features: Mapping[str, Sequence[Sequence[int]]], *, pad_id: int, max_tokens: int, max_rows: int
) -> list[Batch]:
    """Sort rows by length, longest first, and cut them into padded batches.

    Longest first means that a model too large for the budget fails at once and not after an hour.

    Args:
        features: ``input_ids`` and optionally other per-token integers (``token_type_ids``), one list a row.
        pad_id: Token id that fills ``input_ids``; everything else is filled with 0.
        max_tokens: Most tokens in a batch, padding included; a single longer row still makes a batch.
        max_rows: Most rows in a batch.
    """
    lengths = [len(ids) for ids in features["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches, start = [], 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        rows = order[start : start + max(1, min(max_rows, max_tokens // longest))]
        batches.append(_pad(features, rows, longest, pad_id))
        start += len(rows)
    return batches


def _pad(
    features: Mapping[str, Sequence[Sequence[int]]], rows: list[int], longest: int, pad_id: int
) -> Batch:
    """One batch of the given rows."""
    lengths = torch.tensor([len(features["input_ids"][row]) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    inputs = {"attention_mask": mask}
    for name, values in features.items():
        padded = torch.full((len(rows), longest), pad_id if name == "input_ids" else 0)
        padded[mask.bool()] = torch.tensor([value for row in rows for value in values[row]], dtype=torch.long)
        inputs[name] = padded
    return Batch(torch.tensor(rows), inputs)


class _Divisible(Protocol):
    def __len__(self) -> int: ...

    def halves(self) -> list[Self]: ...


_Work = TypeVar("_Work", bound=_Divisible)


def two_short(lengths: Sequence[int]) -> list[int]:
    """Two short items, in their order, to try things out on: the shortest, and one longer than a quarter of them."""
    order = sorted(range(len(lengths)), key=lambda item: lengths[item])
    return sorted({order[0], order[len(order) // 4]})


def run_halving(batch: _Work, work: Callable[[_Work], None]) -> None:
    """Do the work on a batch; when the device has no room for it, on its halves.

    ``work`` must store its results by row only after it has finished, so a failed try leaves nothing behind.

    Raises:
        torch.OutOfMemoryError: Even a single row does not fit.
    """
    try:
        work(batch)
        return
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()  # outside the handler: its traceback would keep the failed batch alive
    for half in batch.halves():
        run_halving(half, work)
