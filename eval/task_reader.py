"""A task's rows for a predictor: the task file says how they become prompts, and choices if any; no right answers."""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal

from vlora.data import Source
from vlora.errors import ConfigError
from vlora.eval.task_config import task_sources
from vlora.eval.task_files import TaskFile, load_task, task_sha256
from vlora.eval.task_forms import answer_text
from vlora.eval.task_rows import form_rows, raw_rows, solved_rows

__all__ = ["TaskReader", "choices_task", "open_task"]

Row = dict[str, Any]


def choices_task(name: str) -> TaskFile:
    """A task of multiple choice, by name or path.

    Raises:
        ConfigError: There is none, or it asks for answers.
    """
    task = load_task(name)
    if task.kind != "multiple_choice":
        raise ConfigError(
            f"task {name} asks for answers, not choices; judge it by vlora eval with kind: generation"
        )
    return task


def open_task(name: str) -> TaskFile:
    """A task of open questions, by name or path.

    Raises:
        ConfigError: There is none, or it has choices or brings its answers along.
    """
    task = load_task(name)
    if task.kind != "open_qa":
        raise ConfigError(
            f"task {name} is of kind {task.kind}; answers are generated for tasks of kind open_qa alone"
        )
    return task


class TaskReader:
    """Reads rows as one task has them.

    Attributes:
        name: Name of the task or path of its file.
        task: The task, of choices or of open questions.
    """

    def __init__(
        self,
        name: str,
        fewshot: Source | None = None,
        kind: Literal["multiple_choice", "open_qa"] = "multiple_choice",
    ) -> None:
        """Read the task file.

        Args:
            name: Name of a task, or path of a task file.
            fewshot: Rows with answers, for tasks whose prompts begin with examples.
            kind: Kind of the task.

        Raises:
            ConfigError: No such task, or one of another kind.
        """
        task = choices_task(name) if kind == "multiple_choice" else open_task(name)
        self.name, self.task, self._fewshot = name, task, fewshot
        self._solved: list[Row] | None = None

    @property
    def has_fewshot(self) -> bool:
        """Whether there are rows to take examples from."""
        return self._fewshot is not None

    @property
    def row_format(self) -> dict[str, Any]:
        """How the rows that this reader makes become tokens, as ``data`` keys."""
        names = {name: name for name in ("prompt", "choices", "answer")}
        return {**names, "answer_offset": 0, "separator": self.task.separator}

    @property
    def sha256(self) -> str:
        """Hash of what is asked: the task file, and the rows that its examples are taken from."""
        return task_sha256(self.task, [f"{row['prompt']}{answer_text(row)}" for row in self._examples()])

    def load(self, place: str) -> list[Row]:
        """Rows of a folder or file as the data have them; a folder's own examples are taken where none were given.

        Raises:
            DataError: Nothing there, or unreadable.
        """
        sources = task_sources(self.task, self.name, place)
        if self._fewshot is None:
            self._fewshot = sources.get("fewshot")
        return raw_rows(self.task, sources["test"], "data")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Rows with ``prompt``, ``choices`` or else ``question``, and as ``id`` their own, the task's, or none.

        Raises:
            DataError: A column is missing, a bad value, or no examples for prompts that begin with some.
        """
        raw = [dict(row) for row in rows]
        formed, _ = form_rows(self.task, raw, self._examples(), name="data", labelled=False)
        column = self.task.id or "id"
        second = "choices" if self.task.kind == "multiple_choice" else "question"
        return [
            {"prompt": row["prompt"], second: row[second], "id": own.get("id", own.get(column))}
            for row, own in zip(formed, raw, strict=True)
        ]

    @property
    def columns(self) -> list[str]:
        """Columns that the prompt is made of, each under the name that the data are looked for first."""
        found = dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.task.prompt) if name)
        named = [self.task.columns.get(name, name) for name in found]
        return [column if isinstance(column, str) else column[0] for column in named]

    def _examples(self) -> list[Row]:
        if self._solved is None:
            self._solved = solved_rows(self.task, self._fewshot)
        return self._solved
