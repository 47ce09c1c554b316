r"""What to read and how to turn a row into an example: the ``data:`` block of every vlora configuration.

A value that names a column (``text: review``) reads that column as it is. A value with braces
(``prompt: "Question: {question}\nAnswer:"``) is a template over the row's columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

from vlora.errors import ConfigError

__all__ = ["DataConfig", "RowFormat", "Source", "SourceConfig", "Task", "check_seed"]

Task = Literal["sequence_classification", "causal_lm", "multiple_choice"]


def check_seed(name: str, seed: int) -> None:
    """Refuse a seed that NumPy's generators do not take.

    Raises:
        ConfigError: The seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"{name} must be from 0 to 2**32 - 1, got {seed}")


def check_counts(config: object, names: Sequence[str], prefix: str = "") -> None:
    """Refuse settings that count something and are below 1; None passes.

    Args:
        config: Holds the settings as attributes.
        names: Which of them.
        prefix: Stands before the name in the message.

    Raises:
        ConfigError: One is below 1.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{prefix}{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set that needs more than a path: a configuration name, a split, a revision."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str | list[str]
    """File (JSONL, CSV, TSV, Parquet, TXT, also gzipped), several, ``save_to_disk`` folder, or hub id."""
    name: str | None = None
    """Configuration of a hub data set, for example ``ARC-Easy``."""
    split: str | None = None
    """Split, also in the slice syntax of ``datasets`` (``train[:1000]``) for files and hub data sets."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""


Source = str | list[str] | SourceConfig


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How a row becomes an example and how an example becomes tokens."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    text: str | list[str] = "text"
    """Classification and plain text: column or template; a list of two is tokenised as a sentence pair."""
    label: str = "label"
    """Classification: column of integers or class names."""
    labels: list[str] | None = None
    """Classification: class names in index order; None takes them from the training rows."""
    prompt: str | None = None
    """Column or template. causal_lm without one trains on ``text``; multiple_choice reads ``question``."""
    response: str = "response"
    """causal_lm with a prompt: column or template of the answer, the only part with a loss."""
    choices: str | list[str] = "choices"
    """multiple_choice: a column holding a list, or one column or template per choice."""
    answer: str = "answer"
    """multiple_choice: column with the index, the letter or the text of the right choice."""
    answer_offset: int = 0
    """Index that the data gives to the first choice (1 for data that counts from one)."""
    group: str | None = None
    """Column that names the group a row is reported under; None puts all rows into one group."""
    separator: str = " "
    """Goes between prompt and response or choice, unless one of them brings its own whitespace."""
    chat: Literal["auto", "never", "always"] = "auto"
    """Wrap prompts in the tokenizer's chat template: when there is one, never, or always."""
    system: str | None = None
    """System message of the chat template."""
    append_eos: bool | None = None
    """End response or text with the end-of-sequence token; None: yes for causal_lm, no for choices."""
    max_length: int = 512
    """Longest sequence in tokens; the prompt gives way first. Never more than the model's own limit."""
    packing: bool = False
    """Plain text: join all texts and cut blocks of ``max_length`` tokens instead of one row a text."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"data.max_length must be at least 2 tokens, got {self.max_length}")
        if isinstance(self.text, list) and len(self.text) != 2:
            raise ConfigError(f"data.text as a list must name two columns (a pair), got {len(self.text)}")
        if isinstance(self.choices, list) and len(self.choices) < 2:
            raise ConfigError(f"data.choices as a list must name at least two columns, got {self.choices}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"data.labels must be distinct, got {self.labels}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowFormat):
    """Training data: where the rows are, how many to take, and how to read them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    train: Source
    """Rows to learn from: a path, a list of paths, or ``{path, name, split, revision}``."""
    validation: Source | None = None
    """Rows for the loss that is watched during training; they are never learnt from."""
    max_rows: int | None = None
    """Take only so many training rows, chosen by ``data.seed``."""
    max_validation_rows: int | None = None
    """Take only so many validation rows, chosen by ``data.seed``."""
    seed: int = 0
    """Seed of the choice of rows, kept apart from the training seed so that seeds compare on equal data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("data.seed", self.seed)
        check_counts(self, ("max_rows", "max_validation_rows"), "data.")
