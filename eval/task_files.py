"""Tasks as small YAML files: where the rows are, how a row becomes a prompt, what counts as right.

A task file knows no model. Its templates and examples are part of its hash, so two scores under one hash were asked in
one way. ``arc_easy`` names a file that ships with vlora, a path that ends in ``.yaml`` one of your own.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from vlora.config import config_sha256, load_config
from vlora.errors import ConfigError

__all__ = ["FewShot", "HubPlace", "Side", "TaskFile", "load_task", "task_names", "task_sha256"]

Split = Literal["test", "validation", "fewshot"]


@dataclass(frozen=True, kw_only=True)
class HubPlace:
    """Data set on the hub, used when no local data are given."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """Hub id."""
    name: str | None = None
    """Configuration of the data set."""
    test: str = "test"
    """Its split to evaluate on."""
    validation: str | None = None
    """Its split to fit on, if it has one apart from the other two."""
    fewshot: str = "train"
    """Its split to take examples from."""
    revision: str | None = None
    """Commit, tag or branch."""


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Solved examples in front of every prompt."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    num_shots: int
    """Examples."""
    seed: int | None = None
    """Draw them by this seed; None takes the first rows."""
    separator: str = "\n\n"
    """Goes between examples."""
    same_group: bool = False
    """Take them from rows of the question's own group."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of several given answers to one question."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    response: str
    """Column of the answer."""
    correct: bool
    """Whether it is right."""


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """One task."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    title: str
    """What it is, in a few words."""
    kind: Literal["multiple_choice", "open_qa", "given_answers"]
    """Choices scored by likelihood, answers to generate, or answers that are given and to be judged."""
    paper: str | None = None
    """Where it comes from."""
    hub: HubPlace | None = None
    """Where to read it without local data."""
    splits: dict[Split, list[str]] = field(
        default_factory=lambda: {"test": ["test", "dev", "validation", "val", "all"], "fewshot": ["train"]}
    )
    """For a local folder: names of the file of a split, without ending, the first that is there counts."""
    csv_columns: list[str] | None = None
    """Names of the columns of CSV files without a header; every file is a group of its name."""
    columns: dict[str, str | list[str]] = field(default_factory=dict)
    """Name used in this file -> column of the data, or several to look for; names that fit need no entry."""
    prompt: str
    """Template of what the model reads, over the columns."""
    question: str = "{question}"
    """Template of the question alone, for judges and people."""
    separator: str = " "
    """Goes between prompt and answer."""
    id: str | None = None
    """Column that identifies a row; must be distinct."""
    group: str | None = None
    """Column of the group that a row is reported under."""
    choices: str | list[str] = "choices"
    """multiple_choice: column that holds a list, or one column a choice."""
    fixed_choices: list[str] | None = None
    """multiple_choice: the same choices for every row, in the order of the answers' indices."""
    num_choices: int | None = None
    """multiple_choice: refuse rows with another number of choices."""
    answer: str = "answer"
    """multiple_choice: column of the index, letter or text of the right choice."""
    answer_offset: int = 0
    """multiple_choice: index that the data give to the first choice."""
    blank: str | None = None
    """multiple_choice: mark in the prompt where the choice goes; the rest of the sentence is scored with it."""
    true_answers: list[str] | None = None
    """multiple_choice: columns of true answers (a text or a list); the first of them is the right choice."""
    false_answers: str | None = None
    """multiple_choice: column of the list of false answers."""
    references: str = "answers"
    """open_qa: column of the right answers, a text or a list; none means that the question has no answer."""
    response: str = "response"
    """given_answers: column of the answer."""
    label: str = "label"
    """given_answers: column that says whether it is right (1, true) or wrong (0, false) …"""
    label_means: Literal["correct", "wrong"] = "correct"
    """… or the other way round."""
    sides: list[Side] | None = None
    """given_answers: several answers a row, each known to be right or wrong, in place of response and label."""
    fewshot: FewShot | None = None
    """Examples in front of every prompt."""
    max_new_tokens: int = 32
    """Longest generated answer in tokens."""
    stop: list[str] = field(default_factory=lambda: ["\n"])
    """Texts that end a generated answer, besides the end-of-sequence token."""
    decline: list[str] = field(default_factory=list)
    """Phrases by which an answer declines, besides saying nothing; compared without case."""

    def __post_init__(self) -> None:
        if (self.true_answers is None) != (self.false_answers is None):
            raise ConfigError("true_answers and false_answers go together; give both or neither")
        if self.fewshot is not None and self.fewshot.num_shots < 1:
            raise ConfigError(f"fewshot.num_shots must be at least 1, got {self.fewshot.num_shots}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


def task_names() -> list[str]:
    """Names of the tasks that ship with vlora."""
    folder = resources.files("vlora.eval") / "tasks"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_task(name: str) -> TaskFile:
    """Read a task by name or path.

    Raises:
        ConfigError: There is none, or the file has a wrong key or value; the message names the nearest right one.
    """
    if name.endswith((".yaml", ".yml")):
        return load_config(TaskFile, Path(name).expanduser())
    known = task_names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no task {name!r}; {hint}tasks: {', '.join(known)}, or the path of a .yaml file")
    with resources.as_file(resources.files("vlora.eval") / "tasks" / f"{name}.yaml") as path:
        return load_config(TaskFile, path)


def task_sha256(task: TaskFile, shots: Sequence[str] = ()) -> str:
    """Hash of a task: every setting of its file, and the text of the examples that its prompts begin with."""
    return config_sha256({"task": task, "shots": list(shots)})
