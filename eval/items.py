"""The items of an evaluation: test, validation and out-of-distribution rows, read once for all models."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora.data import Example, Source, Task, class_names, examples_from_rows, load_rows
from vlora.errors import DataError
from vlora.eval.config import EvalDataConfig
from vlora.eval.task_files import load_task
from vlora.eval.task_rows import read_task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Item", "load_items", "load_reference", "read_class_names"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One row to score, with its place in the evaluation."""

    example: Example
    split: str
    """``test``, ``validation`` or ``ood``."""
    label_probs: list[float] | None = None
    """Known distribution of the right answer."""
    question: str | None = None
    """The prompt without the solved examples in front of it, where a task file tells."""


def load_items(task: Task, data: EvalDataConfig, labels: Sequence[str] | None = None) -> list[Item]:
    """Read all sets: test rows first, then validation, then every out-of-distribution set.

    Args:
        task: What the rows are for.
        data: Sources and columns.
        labels: Class names in index order, for classification.

    Raises:
        DataError: An unreadable source, a missing column, a bad value, or test rows without any right answer.
    """
    items = _read(task, data, data.test, "test", "test", labels)
    if task != "causal_lm" and all(item.example.label is None for item in items):
        raise DataError(
            "no test row has a right answer; accuracy and calibration need labelled rows in data.test"
        )
    if data.validation is not None:
        items += _read(task, data, data.validation, "validation", "validation", labels)
    if task != "causal_lm":
        _count_unlabelled(items)
    for name, source in data.ood.items():
        items += _read(task, data, source, "ood", name, labels)
    return items


def load_reference(task: Task, data: EvalDataConfig, labels: Sequence[str] | None = None) -> list[Example]:
    """Rows of ``data.reference``, with their classes where they have any.

    Args:
        task: What the rows are for.
        data: Sources and columns.
        labels: Class names in index order, for classification.

    Raises:
        DataError: An unreadable source, a missing column, or a bad value.
    """
    assert data.reference is not None
    rows, row_format = _rows(data, data.reference, "train"), replace(data, group=None)
    named: dict[str, Any] = {"split": "reference", "labels": labels, "require_label": False}
    return examples_from_rows(task, rows, row_format, **named)


def _count_unlabelled(items: Sequence[Item]) -> None:
    """Say how many rows have no right answer; they stay in, but not in what needs one."""
    for split, without in (
        ("test", "they are scored and reported by group, but are not in accuracy and calibration"),
        ("validation", "no temperature is fitted on them"),
    ):
        rows = [item for item in items if item.split == split]
        missing = sum(item.example.label is None for item in rows)
        if missing:
            logger.warning("%d of %d %s rows have no right answer: %s", missing, len(rows), split, without)


def read_class_names(data: EvalDataConfig, num_labels: int | None) -> list[str]:
    """Class names in index order: as configured, else from the labelled test rows.

    Args:
        data: Sources and columns.
        num_labels: Size of the classifier head, where an adapter brings one.

    Raises:
        DataError: The names do not fit the head.
    """
    rows: Any = _rows(data, data.test, "test") if data.labels is None else []
    if data.labels is None and data.label in rows.column_names and None in rows[data.label]:
        rows = [row for row in rows if row[data.label] is not None]
        if not rows:
            raise DataError(
                f"no test row has a label in column {data.label!r}; data.test needs labelled rows"
            )
    names = list(data.labels) if data.labels is not None else class_names(rows, data.label)
    if num_labels is None or len(names) == num_labels:
        return names
    if len(names) < num_labels and all(name == str(index) for index, name in enumerate(names)):
        return [str(index) for index in range(num_labels)]  # integers: the test rows lack the last classes
    shown = ", ".join(names[:8])
    raise DataError(
        f"the adapter's head has {num_labels} classes but the data name {len(names)} ({shown}); "
        "give data.labels in the order used in training"
    )


def _read(
    task: Task, data: EvalDataConfig, source: Source, split: str, name: str, labels: Sequence[str] | None
) -> list[Item]:
    """Items of one set; only test rows are divided into groups by a column."""
    rows = _rows(data, source, "validation" if split == "validation" else "test")
    row_format = data if split == "test" else replace(data, group=None)
    column = data.label if task == "sequence_classification" else data.answer
    # a column that is there may have gaps (no right answer); one that is not there is a mistake
    require = split != "ood" and (task == "causal_lm" or column not in rows.column_names)
    arguments: dict[str, Any] = {"split": name, "group": name, "labels": labels, "require_label": require}
    try:
        examples = examples_from_rows(task, rows, row_format, **arguments)
    except DataError as error:
        if split != "ood" or task != "sequence_classification":
            raise
        # labels of another task: some might fit by accident, so the whole set counts as unlabelled
        examples = examples_from_rows(task, rows, replace(row_format, label=""), **arguments)
        logger.warning("data.ood.%s is used without right answers: %s", name, error)
    return [
        Item(
            example,
            split,
            label_probs=_label_probs(example, data.label_probs, split, len(labels or ())),
            question=example.extra["question"] if data.task_file is not None else None,
        )
        for example in examples
    ]


def _rows(data: EvalDataConfig, source: Source, split: str) -> "Dataset":
    if data.task_file is not None:
        from datasets import Dataset

        task = load_task(data.task_file)
        limits: dict[str, Any] = {"max_rows": data.max_rows, "seed": data.seed}
        return Dataset.from_list(read_task(task, source, fewshot=data.fewshot, name=split, **limits).rows)
    return load_rows(source, split=split, max_rows=data.max_rows, seed=data.seed)


def _label_probs(example: Example, column: str | None, split: str, num_classes: int) -> list[float] | None:
    """The row's distribution of the right answer over its choices or the classes, checked."""
    values: Any = example.extra.get(column) if column else None
    if values is None:
        if column and split == "test" and column not in example.extra:
            raise DataError(
                f"{example.item}: no column {column!r}; the columns are {', '.join(example.extra)}"
            )
        return None
    size = len(example.choices) if example.choices is not None else num_classes
    try:
        probs = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError):  # texts, lists of several lengths
        probs = np.full(1, np.nan)
    if (
        probs.shape != (size,)
        or not np.isfinite(probs).all()
        or probs.min() < 0
        or abs(probs.sum() - 1) > 1e-6
    ):
        raise DataError(
            f"{example.item}: {column!r} must hold {size} finite probabilities, one a choice, that sum to 1, got "
            f"{values!r:.60}"
        )
    return probs.tolist()
