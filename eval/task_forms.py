"""One row of a task in its common form: prompt and choices, prompt and references, or prompt and given answer."""

from collections.abc import Iterable, Mapping
from typing import Any

from vlora.data import RowFormat
from vlora.data.examples import read_fields, render
from vlora.errors import DataError
from vlora.eval.task_files import TaskFile

__all__ = ["Row", "answer_text", "common_rows"]

Row = dict[str, Any]


def common_rows(row: Row, task: TaskFile, where: str, number: int, *, labelled: bool = True) -> Iterable[Row]:
    """The common form of one row: one, or one a side.

    Args:
        row: Values by column, under the names that the task uses.
        task: The task.
        where: Name of the row, for messages.
        number: Its place in the data, its identity where the task names none.
        labelled: False leaves ``correct`` of a given answer None, whatever the data say.

    Raises:
        DataError: A missing column or label, a bad value, or an unwanted number of choices.
    """
    if task.group and row.get(task.group) is None:
        raise DataError(
            f"{where}: no value in column {task.group!r}, by which the task's rows are grouped; "
            f"the columns are {', '.join(map(str, row))}"
        )
    shared = {
        "item": str(number) if task.id is None or row.get(task.id) is None else str(row[task.id]),
        "group": str(row[task.group]) if task.group else "all",
    }
    if task.kind == "multiple_choice":
        return [shared | _multiple_choice(row, task, where)]
    shared |= {"prompt": render(row, task.prompt, where), "question": render(row, task.question, where)}
    if task.kind == "open_qa":
        return [shared | {"references": _texts(row, task.references, where, empty=True)}]
    if task.sides is None:
        correct = _label(row, task, where) if labelled else None
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
        prompt = render(row, task.prompt, where)
        return {"prompt": prompt, "question": prompt, "choices": true + false, "answer": 0, "true": marks}
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
    read = read_fields("multiple_choice", row, form, where, require_label=task.answer not in row)
    choices = list(read["choices"])
    if task.num_choices is not None and len(choices) != task.num_choices:
        raise DataError(f"{where}: expected {task.num_choices} choices, got {len(choices)}")
    prompt = read["prompt"]
    if task.blank is not None:
        before, mark, after = prompt.partition(task.blank)
        if not mark:
            raise DataError(f"{where}: no {task.blank!r} in the sentence for the choice to go to")
        prompt, choices = before.rstrip(), [choice + after for choice in choices]
    return {"prompt": prompt, "question": prompt, "choices": choices, "answer": read["label"], "true": None}


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


_YES = {
    **{"1": True, "1.0": True, "true": True, "yes": True},
    **{"0": False, "0.0": False, "false": False, "no": False},
}


def _label(row: Mapping[str, Any], task: TaskFile, where: str) -> bool:
    """Whether a given answer is right."""
    value = row.get(task.label)
    said = _YES.get(str(value).strip().lower())
    if said is None:
        raise DataError(
            f"{where}: {task.label!r} must say yes or no (1 or 0), got {value!r}; every given answer needs a label"
        )
    return said if task.label_means == "correct" else not said


def answer_text(row: Row) -> str | None:
    """Right answer of a row in words; None where there is none."""
    if "choices" in row:
        return None if row["answer"] is None else row["choices"][row["answer"]]
    if "references" in row:
        return row["references"][0] if row["references"] else None
    return row["response"] if row["correct"] else None
