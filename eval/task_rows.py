"""Rows of a task in one common form, whatever the columns of the data.

``multiple_choice``: prompt, choices, answer (index or None), group, true (marks of TruthfulQA, else None).
``open_qa``: prompt, question, references, group.  ``given_answers``: prompt, question, response, correct, group.
Every row has an ``item``, its number in the data or its own identity.
"""

import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.data import RowFormat, Source, examples_from_rows, join, load_rows
from vlora.data.examples import render
from vlora.data.sources import take_indices
from vlora.errors import DataError
from vlora.eval.task_files import TaskFile, task_sha256

__all__ = ["TaskRows", "read_task"]

Row = dict[str, Any]


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
    raw = _renamed(_raw(task, source, name), task, name)
    _check_ids(raw, task, name)
    solved = _solved(task, fewshot)
    rows = [
        row for number, one in enumerate(raw) for row in _common(one, task, f"{name} row {number}", number)
    ]
    prefix, shots = _prefixes(task, solved, [row["group"] for row in rows])
    for row in rows:
        row["prompt"] = prefix.get(row["group"] if _by_group(task) else "", "") + row["prompt"]
    chosen = take_indices(len(rows), max_rows, seed)
    return TaskRows([rows[index] for index in chosen], task_sha256(task, shots), shots)


def _raw(task: TaskFile, source: Source, split: str) -> list[Row]:
    """Rows as the data have them."""
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


def _renamed(rows: Sequence[Row], task: TaskFile, split: str) -> list[Row]:
    """Rows with the columns under the names that the task uses."""
    present = set(rows[0]) if rows else set()
    found = {}
    for name, wanted in task.columns.items():
        candidates = [wanted] if isinstance(wanted, str) else wanted
        column = next((column for column in candidates if column in present), None)
        if column is None:
            raise DataError(
                f"{split} rows have no column {' or '.join(map(repr, candidates))} for {name!r}; "
                f"the columns are {', '.join(rows[0]) if rows else 'none'}"
            )
        found[name] = column
    return [{**row, **{name: row[column] for name, column in found.items()}} for row in rows]


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


def _common(row: Row, task: TaskFile, where: str, number: int) -> Iterable[Row]:
    """The common form of one row: one, or one a side."""
    shared = {
        "item": str(row[task.id]) if task.id else str(number),
        "group": str(row[task.group]) if task.group else "all",
    }
    if task.kind == "multiple_choice":
        return [shared | _multiple_choice(row, task, where)]
    shared |= {"prompt": render(row, task.prompt, where), "question": render(row, task.question, where)}
    if task.kind == "open_qa":
        return [shared | {"references": _texts(row, task.references, where, empty=True)}]
    if task.sides is None:
        correct = _label(row, task, where)
        return [shared | {"response": _texts(row, task.response, where)[0], "correct": correct}]
    return [
        shared
        | {"item": f"{shared['item']}/{side.response}", "response": _texts(row, side.response, where)[0]}
        | {"correct": side.correct}
        for side in task.sides
    ]


def _multiple_choice(row: Row, task: TaskFile, where: str) -> Row:
    """Prompt, choices and answer of one row."""
    if task.true_answers is not None and task.false_answers is not None:
        true = list(dict.fromkeys(t for column in task.true_answers for t in _texts(row, column, where)))
        false = [text for text in _texts(row, task.false_answers, where) if text not in true]
        if not false:
            raise DataError(f"{where}: no false answer in {task.false_answers!r} that is not also a true one")
        marks = [True] * len(true) + [False] * len(false)
        return {
            "prompt": render(row, task.prompt, where), "choices": true + false, "answer": 0, "true": marks
        }  # fmt: skip
    if task.fixed_choices is not None:
        row = {**row, "choices": task.fixed_choices}
        answer = row.get(task.answer)
        row[task.answer] = int(answer) if isinstance(answer, bool) else answer
    form = RowFormat(
        prompt=task.prompt,
        choices=task.choices if task.fixed_choices is None else "choices",
        answer=task.answer,
        answer_offset=task.answer_offset,
    )
    (example,) = examples_from_rows(
        "multiple_choice", [row], form, split=where, require_label=task.answer not in row
    )
    choices = list(example.choices or ())
    if task.num_choices is not None and len(choices) != task.num_choices:
        raise DataError(f"{where}: expected {task.num_choices} choices, got {len(choices)}")
    prompt = example.prompt
    if task.blank is not None:
        before, mark, after = prompt.partition(task.blank)
        if not mark:
            raise DataError(f"{where}: no {task.blank!r} in the sentence for the choice to go to")
        prompt, choices = before.rstrip(), [choice + after for choice in choices]
    return {"prompt": prompt, "choices": choices, "answer": example.label, "true": None}


def _texts(row: Mapping[str, Any], column: str, where: str, *, empty: bool = False) -> list[str]:
    """A column that holds one text or a list of texts."""
    if column not in row:
        raise DataError(f"{where}: no column {column!r}; the columns are {', '.join(map(str, row))}")
    value = row[column]
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(text, str) for text in values):
        raise DataError(f"{where}: column {column!r} must be a text or a list of texts, got {value!r:.60}")
    if not values and not empty:
        raise DataError(f"{where}: column {column!r} is empty")
    return list(values)


_YES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _label(row: Mapping[str, Any], task: TaskFile, where: str) -> bool:
    """Whether a given answer is right."""
    value = row.get(task.label)
    said = _YES.get(str(int(value)) if isinstance(value, bool | float) else str(value).strip().lower())
    if said is None:
        raise DataError(
            f"{where}: {task.label!r} must say yes or no (1 or 0), got {value!r}; every given answer needs a label"
        )
    return said if task.label_means == "correct" else not said


def _by_group(task: TaskFile) -> bool:
    return task.fewshot is not None and task.fewshot.same_group


def _solved(task: TaskFile, source: Source | None) -> list[Row]:
    """Rows with answers, to take examples from."""
    if task.fewshot is None:
        return []
    if source is None:
        raise DataError(
            "the task puts solved examples in front: give data.fewshot, the rows to take them from"
        )
    raw = _renamed(_raw(task, source, "fewshot"), task, "fewshot")
    rows = [
        row for number, one in enumerate(raw) for row in _common(one, task, f"fewshot row {number}", number)
    ]
    return [row for row in rows if _answer_text(row) is not None]


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
            join(row["prompt"], str(_answer_text(row)), task.separator)
            for row in pool[: task.fewshot.num_shots]
        ]
        prefixes[group] = "".join(text + task.fewshot.separator for text in texts)
        shots += texts
    return prefixes, shots


def _answer_text(row: Row) -> str | None:
    """Right answer of a row in words; None where there is none."""
    if "choices" in row:
        return None if row["answer"] is None else row["choices"][row["answer"]]
    if "references" in row:
        return row["references"][0] if row["references"] else None
    return row["response"] if row["correct"] else None
