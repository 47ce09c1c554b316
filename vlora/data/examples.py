"""From rows to examples: columns and templates, labels, choices, with every bad row named.

An :class:`Example` is what training encodes and what evaluation scores, so both read a row in one way.
"""

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from vlora.data.config import RowFormat, Source, Task
from vlora.data.labels import class_index, class_names, whole
from vlora.data.sources import load_rows, take_rows
from vlora.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Example", "examples_from_rows", "load_examples", "read_fields", "render"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, read.

    ``sequence_classification`` fills ``text`` (and ``text_pair``) and ``label``; ``multiple_choice`` fills
    ``prompt``, ``choices``, ``label`` and ``response`` (the right choice); ``causal_lm`` fills ``prompt`` and
    ``response``, or ``text`` alone for plain text.
    """

    item: str
    """``<split>/<row number>``, unique within a run."""
    text: str = ""
    """What is classified or modelled; for prompted tasks a copy of the prompt, for display."""
    text_pair: str | None = None
    """Second segment of a sentence pair."""
    prompt: str = ""
    """Text in front of the response or of each choice, without separator and chat template."""
    response: str | None = None
    """Right continuation of the prompt; None when unknown or for plain text."""
    choices: tuple[str, ...] | None = None
    """Alternatives, without separator."""
    label: int | None = None
    """Index of the right class or choice; None when there is no right answer."""
    group: str = "all"
    """Group the row is reported under."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The raw row."""


def load_examples(
    task: Task,
    source: Source,
    row_format: RowFormat,
    *,
    split: str = "train",
    group: str = "all",
    labels: Sequence[str] | None = None,
    require_label: bool = True,
    max_rows: int | None = None,
    seed: int = 0,
) -> list[Example]:
    """Read a source into examples: :func:`load_rows`, then :func:`examples_from_rows`.

    Args:
        task: What the rows are for.
        source: See :func:`vlora.data.load_rows`.
        row_format: Columns and templates.
        split: Split of the source to take by default, and first half of every ``item``.
        group: Group of rows when ``row_format.group`` names no column.
        labels: Class names in index order; None takes ``row_format.labels``, else those of these rows.
        require_label: False lets rows without a label or answer through (``label=None``).
        max_rows: Rows to keep, drawn by ``seed``.
        seed: Seed of that draw.

    Raises:
        DataError: unreadable source, missing column, or a bad value, with the row's number.
    """
    rows = load_rows(source, split=split)
    names = labels if labels is not None else row_format.labels
    if task == "sequence_classification" and names is None and require_label:
        names = class_names(rows, row_format.label)  # of all rows, so that a draw of few keeps the classes
    rows = take_rows(rows, max_rows, seed)
    return examples_from_rows(
        task, rows, row_format, split=split, group=group, labels=names, require_label=require_label
    )


def examples_from_rows(
    task: Task,
    rows: "Dataset | Sequence[Mapping[str, Any]]",
    row_format: RowFormat,
    *,
    split: str = "train",
    group: str = "all",
    labels: Sequence[str] | None = None,
    require_label: bool = True,
) -> list[Example]:
    """Turn rows into examples; arguments as in :func:`load_examples`."""
    names = labels if labels is not None else row_format.labels
    if task == "sequence_classification" and names is None and require_label:
        names = class_names(rows, row_format.label)
    examples = []
    for number, row in enumerate(cast("Iterable[Mapping[str, Any]]", rows)):
        where = f"{split} row {number}"
        fields = read_fields(task, row, row_format, where, labels=names, require_label=require_label)
        shown_group = str(_column(row, row_format.group, where)) if row_format.group else group
        examples.append(Example(item=f"{split}/{number}", group=shown_group, extra=dict(row), **fields))
    return examples


def read_fields(
    task: Task,
    row: Mapping[str, Any],
    fmt: RowFormat,
    where: str,
    *,
    labels: Sequence[str] | None = None,
    require_label: bool = True,
) -> dict[str, Any]:
    """The fields of an :class:`Example` that one row fills, by name.

    Args:
        task: What the row is for.
        row: Values by column.
        fmt: Columns and templates.
        where: Name of the row, for messages.
        labels: Class names in index order.
        require_label: False lets a row without a label or answer through.

    Raises:
        DataError: A missing column or a bad value.
    """
    if task == "multiple_choice":
        return _multiple_choice(row, fmt, require_label, where)
    if task == "causal_lm" and fmt.prompt is not None:
        prompt = render(row, fmt.prompt, where)
        known = require_label or _present(row, fmt.response)
        return {
            "text": prompt,
            "prompt": prompt,
            "response": render(row, fmt.response, where) if known else None,
        }
    parts = [render(row, part, where) for part in ([fmt.text] if isinstance(fmt.text, str) else fmt.text)]
    fields: dict[str, Any] = {"text": parts[0], "text_pair": parts[1] if len(parts) > 1 else None}
    if task == "sequence_classification" and (require_label or row.get(fmt.label) is not None):
        fields["label"] = class_index(_column(row, fmt.label, where), labels, f"{where}: {fmt.label!r}")
    return fields


def _multiple_choice(
    row: Mapping[str, Any], fmt: RowFormat, require_label: bool, where: str
) -> dict[str, Any]:
    """Prompt, choices and the index of the right one."""
    prompt = render(row, fmt.prompt if fmt.prompt is not None else "question", where)
    choices, marks = _choices(row, fmt, where)
    label = None
    if require_label or row.get(fmt.answer) is not None:
        label = _answer_index(_column(row, fmt.answer, where), choices, marks, fmt, where)
    response = None if label is None else choices[label]
    return {"text": prompt, "prompt": prompt, "choices": choices, "label": label, "response": response}


def _choices(row: Mapping[str, Any], fmt: RowFormat, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The alternatives and the marks the data gives them (hub sets: ``{text: [...], label: [...]}``)."""
    marks: Iterable[Any] = ()
    if isinstance(fmt.choices, list):
        values: Any = [render(row, part, where) for part in fmt.choices]
    else:
        values = _column(row, fmt.choices, where)
    if isinstance(values, Mapping) and "text" in values:
        values, marks = values["text"], values.get("label", ())
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise DataError(f"{where}: column {fmt.choices!r} must be a list of strings, got {values!r:.60}")
    if len(values) < 2:
        raise DataError(f"{where}: expected at least two choices, got {len(values)}")
    return tuple(values), tuple(str(mark) for mark in marks)


def _answer_index(
    answer: Any, choices: tuple[str, ...], marks: tuple[str, ...], fmt: RowFormat, where: str
) -> int:
    """Index of the right choice from an index, a mark, a letter, or the choice's own text."""
    if isinstance(answer, str):
        letters = string.ascii_uppercase[: len(choices)]
        for table in (marks, choices, tuple(letters), tuple(letters.lower())):
            if table.count(answer) == 1:
                return table.index(answer)
        answer = int(answer) if answer.strip().lstrip("+-").isdigit() else answer
    answer = whole(answer)
    if (
        isinstance(answer, int)
        and not isinstance(answer, bool)
        and 0 <= int(answer) - fmt.answer_offset < len(choices)
    ):
        return int(answer) - fmt.answer_offset
    raise DataError(
        f"{where}: answer {answer!r} is not one of the {len(choices)} choices "
        f"(indices {fmt.answer_offset}..{len(choices) - 1 + fmt.answer_offset}, letters or their text)"
    )


def render(row: Mapping[str, Any], spec: str, where: str) -> str:
    """A column's string, or a template filled from the row.

    Args:
        row: Values by column.
        spec: Name of a column, or a template with names in braces.
        where: Name of the row, for messages.

    Raises:
        DataError: A column is missing or no text, or the template cannot be parsed.
    """
    if "{" not in spec:
        value = _column(row, spec, where)
        if not isinstance(value, str):
            raise DataError(
                f"{where}: column {spec!r} must be a string, got {type(value).__name__} {value!r:.40}"
            )
        return value
    try:
        parts = list(string.Formatter().parse(spec))
    except ValueError as error:
        raise DataError(
            f"template {spec!r} cannot be parsed: {error}; double a brace that is text"
        ) from error
    return "".join(
        literal + ("" if name is None else _field(row, name, where)) for literal, name, *_ in parts
    )


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    """One template field: strings as they are, numbers written out."""
    value = _column(row, name, where)
    if not isinstance(value, str | int | float):
        raise DataError(f"{where}: column {name!r} must be a string or a number, got {type(value).__name__}")
    return str(value)


def _present(row: Mapping[str, Any], spec: str) -> bool:
    """Whether every column that a spec reads is there and filled."""
    names = [spec] if "{" not in spec else [name for _, name, *_ in string.Formatter().parse(spec) if name]
    return all(row.get(name) is not None for name in names)


def _column(row: Mapping[str, Any], name: str, where: str) -> Any:
    """One value of a row."""
    if name not in row:
        raise DataError(f"{where}: no column {name!r}; the columns are {', '.join(map(str, row))}")
    return row[name]
