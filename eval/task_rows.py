"""Rows of a task in one common form, whatever the columns of the data.

``multiple_choice``: prompt, question (the prompt without examples), choices, answer (index or None), group, true (marks
of TruthfulQA, else None).
``open_qa``: prompt, question, references, group.  ``given_answers``: prompt, question, response, correct, group.
Every row has an ``item``, its number in the data or its own identity.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlora.data import Source, join, load_rows
from vlora.data.sources import take_indices
from vlora.errors import DataError
from vlora.eval.task_files import TaskFile, task_sha256
from vlora.eval.task_forms import Row, answer_text, common_rows

__all__ = ["TaskRows", "form_rows", "raw_rows", "read_task", "solved_rows"]


@dataclass(frozen=True)
class TaskRows:
    """What a task asks."""

    rows: list[Row]
    """The questions in their common form."""
    sha256: str
    """Hash of the task and of the examples in its prompts."""
    shots: list[str]
    """Solved examples by which prompts begin, for groups apart one list after another."""


def read_task(
    task: TaskFile,
    source: Source,
    *,
    fewshot: Source | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    name: str = "test",
) -> TaskRows:
    """Read the rows of one split.

    Args:
        task: The task.
        source: Its data; with ``csv_columns`` a file, several, or a folder of them.
        fewshot: Data to take the examples from.
        max_rows: Take only so many rows, drawn by ``seed``.
        seed: Seed of that draw.
        name: Name of the split, for messages.

    Raises:
        DataError: Nothing there, a missing column or label, identities that repeat, or unequal numbers of choices.
    """
    raw = raw_rows(task, source, name)
    rows, shots = form_rows(task, raw, solved_rows(task, fewshot), name=name)
    chosen = take_indices(len(rows), max_rows, seed)
    return TaskRows([rows[index] for index in chosen], task_sha256(task, shots), shots)


def form_rows(
    task: TaskFile, raw: Sequence[Row], solved: Sequence[Row], *, name: str = "test", labelled: bool = True
) -> tuple[list[Row], list[str]]:
    """Rows in their common form, and the solved examples that their prompts begin with.

    Args:
        task: The task.
        raw: Rows as the data have them.
        solved: Rows to take examples from, of :func:`solved_rows`.
        name: Name of the split, for messages.
        labelled: False for rows to predict: right answers are neither needed nor looked at, identities may repeat, and
            groups are needed only where examples are taken by them.

    Raises:
        DataError: As :func:`read_task`.
    """
    hidden = {"open_qa": task.references, "given_answers": task.label}.get(task.kind, task.answer)
    renamed = _renamed(raw, task, name, without=() if labelled else (hidden,))
    if labelled:
        _check_ids(renamed, task, name)
    else:
        unnamed = {task.group: "all"} if task.group and not _by_group(task) else {}
        renamed = [{**unnamed, **row, hidden: None} for row in renamed]
    rows = [
        row
        for number, one in enumerate(renamed)
        for row in common_rows(one, task, f"{name} row {number}", number, labelled=labelled)
    ]
    prefix, shots = _prefixes(task, solved, [row["group"] for row in rows])
    for row in rows:
        row["prompt"] = prefix.get(row["group"] if _by_group(task) else "", "") + row["prompt"]
    return rows, shots


def raw_rows(task: TaskFile, source: Source, split: str) -> list[Row]:
    """Rows as the data have them.

    Args:
        task: The task; with ``csv_columns`` it reads CSV files without a header.
        source: Its data.
        split: Name of the split, for messages.

    Raises:
        DataError: Nothing there, or unreadable.
    """
    if task.csv_columns is None:
        return [dict(row) for row in load_rows(source, split=split)]  # pyright: ignore[reportArgumentType]
    rows: list[Row] = []
    for path in _csv_files(source):
        with open(path, newline="", encoding="utf-8") as file:
            for number, values in enumerate(csv.reader(file)):
                if len(values) != len(task.csv_columns):
                    raise DataError(
                        f"{path} row {number}: expected {len(task.csv_columns)} columns "
                        f"({', '.join(task.csv_columns)}), got {len(values)}"
                    )
                group = path.stem.removesuffix("_test").removesuffix("_dev").removesuffix("_val")
                rows.append({**dict(zip(task.csv_columns, values, strict=True)), "group": group})
    if not rows:
        raise DataError(f"data source {source!r} has no rows; expected CSV files without a header")
    return rows


def _csv_files(source: Source) -> list[Path]:
    paths = [source] if isinstance(source, str) else source if isinstance(source, list) else [source.path]
    found: list[Path] = []
    for path in (Path(str(one)).expanduser() for one in paths):
        found += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise DataError(f"data file {missing[0]} does not exist (working directory {Path.cwd()})")
    return found


def _renamed(rows: Sequence[Row], task: TaskFile, split: str, without: Sequence[str] = ()) -> list[Row]:
    """Rows with the columns under the names that the task uses; those ``without`` may be missing."""
    present = set(rows[0]) if rows else set()
    found = {}
    for name, wanted in task.columns.items():
        candidates = [wanted] if isinstance(wanted, str) else wanted
        column = next((column for column in candidates if column in present), None)
        if column is None and name in without:
            continue
        if column is None:
            raise DataError(
                f"{split} rows have no column {' or '.join(map(repr, candidates))} for {name!r}; "
                f"the columns are {', '.join(rows[0]) if rows else 'none'}"
            )
        found[name] = column
    return [{**row, **{name: row[column] for name, column in found.items() if column in row}} for row in rows]


def _check_ids(rows: Sequence[Row], task: TaskFile, split: str) -> None:
    if task.id is None:
        return
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row.get(task.id) is None:
            raise DataError(f"{split} row {number}: no {task.id!r} to identify it by")
        first = seen.setdefault(str(row[task.id]), number)
        if first != number:
            raise DataError(
                f"{split} rows {first} and {number} share the {task.id} {row[task.id]!r}; rows must be distinct"
            )


def _by_group(task: TaskFile) -> bool:
    return task.fewshot is not None and task.fewshot.same_group


def solved_rows(task: TaskFile, source: Source | None) -> list[Row]:
    """Rows with answers in their common form, to take examples from; none for a task without examples.

    Raises:
        DataError: The task wants examples and there is no source, or it cannot be read.
    """
    if task.fewshot is None:
        return []
    if source is None:
        raise DataError(
            "the task puts solved examples in front: give data.fewshot, the rows to take them from"
        )
    raw = _renamed(raw_rows(task, source, "fewshot"), task, "fewshot")
    rows = [
        row
        for number, one in enumerate(raw)
        for row in common_rows(one, task, f"fewshot row {number}", number)
    ]
    return [row for row in rows if answer_text(row) is not None]


def _prefixes(
    task: TaskFile, solved: Sequence[Row], groups: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Text in front of the prompts of each group ('' for all), and the examples in it."""
    if task.fewshot is None:
        return {}, []
    prefixes, shots = {}, []
    for group in dict.fromkeys(groups) if _by_group(task) else [""]:
        pool = [row for row in solved if not group or row["group"] == group]
        if len(pool) < task.fewshot.num_shots:
            of_group = f" of group {group!r}" if group else ""
            raise DataError(
                f"the task wants {task.fewshot.num_shots} examples, data.fewshot has {len(pool)} rows{of_group}"
            )
        if task.fewshot.seed is not None:
            random.Random(f"{task.fewshot.seed}/{group}").shuffle(pool)
        texts = [
            join(row["prompt"], str(answer_text(row)), task.separator)
            for row in pool[: task.fewshot.num_shots]
        ]
        prefixes[group] = "".join(text + task.fewshot.separator for text in texts)
        shots += texts
    return prefixes, shots
