"""A task's rows for a predictor: the task file says how they become prompts, and choices if any; no right answers.

A task of given answers with several ``sides`` a row is read, when predicting, as one answer a row, in the column that
``response`` names: which side it comes from is what is to be found out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import Formatter
from typing import Any, Literal

from vlora.data import Source
from vlora.errors import ConfigError
from vlora.eval.task_config import task_sources
from vlora.eval.task_files import TaskFile, load_task, task_sha256
from vlora.eval.task_forms import answer_text
from vlora.eval.task_rows import form_rows, raw_rows, solved_rows

__all__ = ["TaskReader", "answers_task", "choices_task"]

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


def answers_task(name: str) -> TaskFile:
    """A task of open questions or of given answers, by name or path.

    Raises:
        ConfigError: There is none, or it has choices.
    """
    task = load_task(name)
    if task.kind == "multiple_choice":
        raise ConfigError(
            f"task {name} has choices; answers are judged for tasks of open questions or given answers"
        )
    return task


class TaskReader:
    """Reads rows as one task has them.

    Attributes:
        name: Name of the task or path of its file.
        task: The task, of choices, of open questions or of given answers.
    """

    def __init__(
        self,
        name: str,
        fewshot: Source | None = None,
        kind: Literal["choices", "answers"] = "choices",
    ) -> None:
        """Read the task file.

        Args:
            name: Name of a task, or path of a task file.
            fewshot: Rows with answers, for tasks whose prompts begin with examples.
            kind: What the task is to be about.

        Raises:
            ConfigError: No such task, or one of another kind.
        """
        task = choices_task(name) if kind == "choices" else answers_task(name)
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

        Rows of given answers have their ``response``, too.

        Raises:
            DataError: A column is missing, a bad value, or no examples for prompts that begin with some.
        """
        raw = [dict(row) for row in rows]
        task = replace(self.task, sides=None)
        formed, _ = form_rows(task, raw, self._examples(), name="data", labelled=False)
        column = task.id or "id"
        more = {
            "multiple_choice": ("choices",),
            "open_qa": ("question",),
            "given_answers": ("question", "response"),
        }
        return [
            {
                **{name: row[name] for name in ("prompt", *more[task.kind])},
                "id": own.get("id", own.get(column)),
            }
            for row, own in zip(formed, raw, strict=True)
        ]

    @property
    def columns(self) -> list[str]:
        """Columns that a row needs, each under the name that the data are looked for first."""
        found = dict.fromkeys(name for _, name, _, _ in Formatter().parse(self.task.prompt) if name)
        found |= {self.task.response: None} if self.task.kind == "given_answers" else {}
        named = [self.task.columns.get(name, name) for name in found]
        return [column if isinstance(column, str) else column[0] for column in named]

    def _examples(self) -> list[Row]:
        if self._solved is None:
            self._solved = solved_rows(self.task, self._fewshot)
        return self._solved
