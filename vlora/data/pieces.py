"""Batches for the passes over data beside training: in a seeded order, cut to a number of rows."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vlora.data.encode import EncodedDataset
from vlora.errors import DataError

__all__ = ["pieces", "shuffled_batches", "single_rows"]


def shuffled_batches(
    rows: EncodedDataset, collate: Any, *, batch_size: int, seed: int
) -> Iterable[Mapping[str, Any]]:
    """A loader of padded batches in an order of its own; global random state is not touched.

    Args:
        rows: Encoded rows.
        collate: From :func:`vlora.data.data_collator`.
        batch_size: Rows in a batch.
        seed: Seed of the order.
    """
    from torch.utils.data import DataLoader

    return DataLoader(
        rows,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        shuffle=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )


def pieces(
    batches: Iterable[Mapping[str, Any]], max_examples: int | None, *, one_by_one: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Batches, or their single rows, with their number of rows, up to ``max_examples`` rows in all.

    Args:
        batches: Mappings whose tensors have one row per example; other values are passed on as they are.
        max_examples: Rows to stop after; None for all.
        one_by_one: Give one row at a time.

    Raises:
        DataError: A batch without any rows.
    """
    left = max_examples
    for batch in batches:
        rows = next((len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim()), 0)
        if rows == 0:
            raise DataError(f"expected a batch of tensors with at least one row, got keys {list(batch)}")
        take = rows if left is None else min(rows, left)
        step = 1 if one_by_one else take
        for start in range(0, take, step):
            yield min(step, take - start), _rows_of(batch, rows, start, start + step)
        if left is not None:
            left -= take
            if left == 0:
                return


def single_rows(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one batch, each as a batch of one."""
    return (row for _, row in pieces([batch], None, one_by_one=True))


def _rows_of(batch: Mapping[str, Any], rows: int, start: int, stop: int) -> dict[str, Any]:
    def cut(value: Any) -> Any:
        per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        return value[start:stop] if per_row else value

    return {key: cut(value) for key, value in batch.items()}
