"""Rows on disk between sampling and estimating: ``answers.jsonl``, one JSON object per model and question.

Every estimator follows from them without a model, except for ``measured``, which needs hidden states or a judge and is
kept as a number. Log-probabilities are in nats and untempered; ``null`` in a list of them stands for minus infinity,
``null`` in ``measured`` for "could not be had".
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlora.errors import DataError

__all__ = ["AnswerRecord", "Given", "Pooled", "Sample", "read_answers", "read_whole_answers", "to_line"]

_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class Given:
    """The answer that is judged: greedy, or given with the question."""

    text: str
    """In words."""
    given: bool
    """Whether it came with the question."""
    ended: bool
    """Whether it ended by itself."""
    log_probs: list[float]
    """Of every token at the mean; of an ensemble, of the mixture of its members token by token."""
    entropies: list[float]
    """Entropy of every next-token distribution at the mean; of an ensemble, the members' mean."""
    draw_log_probs: list[float]
    """Of the whole answer under every draw."""
    draw_entropies: list[float]
    """Mean token entropy under every draw."""
    p_true: float | None = None
    """Probability that the model calls it true, at the mean."""
    draw_p_true: list[float] = field(default_factory=list)
    """The same under every draw."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sampled answer."""

    draw: int
    """Under which draw."""
    pool: int
    """Which of the distinct answers."""
    log_probs: list[float]
    """Of every token under that draw."""


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """One distinct answer, as tokens, scored under everything."""

    text: str
    """In words."""
    cluster: int
    """Meaning."""
    tokens: int
    """Length, stop token included."""
    draw_log_probs: list[float]
    """Of the whole answer under every draw."""


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """What one model said about one question."""

    model: str
    """Name of the model."""
    item: str
    """Identity of the question, equal for all models."""
    split: str
    """``test``, ``validation`` or ``ood``."""
    group: str
    """Part of the test set, or name of the out-of-distribution set."""
    question: str
    """The question alone."""
    references: list[str]
    """Right answers; none when there is no answer."""
    num_tokens: int
    """Length of the prompt in tokens."""
    answer: Given
    """The answer that is judged."""
    attempted: bool
    """Whether it says anything."""
    correct: float | None
    """1 right, 0 wrong; None when it could not be graded."""
    samples: list[Sample] = field(default_factory=list)
    """Sampled answers, the same number under every draw."""
    pool: list[Pooled] = field(default_factory=list)
    """Distinct answers; the judged one comes first."""
    antithetic: bool = False
    """Draws 2j and 2j+1 mirror each other."""
    clusters_by: str = "token_f1"
    """How meanings were told apart; ``text`` where the judge failed."""
    measured: dict[str, float | None] = field(default_factory=dict)
    """Scores that need hidden states or a judge."""
    judge_failures: int = 0
    """Pairs of texts on which the judge gave no verdict."""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "AnswerRecord":
        """Make a record of a parsed row.

        Raises:
            DataError: A key is missing, unknown or of a wrong type.
        """
        if not isinstance(row, dict):
            raise DataError(f"not an answer record ({type(row).__name__})")
        unknown = [key for key in row if key not in {field.name for field in fields(cls)}]
        if unknown:
            raise DataError(f"unknown key {unknown[0]!r}; a newer vlora may have written it")
        try:
            values = {**row, "answer": _build(Given, row["answer"])}
            values["samples"] = [_build(Sample, one) for one in row["samples"]]
            values["pool"] = [_build(Pooled, one) for one in row["pool"]]
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not an answer record ({' '.join(str(error).split())[:120]})") from None


def _build(cls: Any, row: Mapping[str, Any]) -> Any:
    """One part of a record, None in lists of log-probabilities as minus infinity."""
    lists = {f.name for f in fields(cls) if "log_probs" in f.name}
    return cls(
        **{
            name: [-math.inf if one is None else float(one) for one in value] if name in lists else value
            for name, value in row.items()
        }
    )


def to_line(record: AnswerRecord) -> str:
    """One line of JSON, numbers rounded to what float32 can tell."""
    return json.dumps(_plain(asdict(record)), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    return value


def read_answers(path: str | Path) -> Iterator[AnswerRecord]:
    """Records of a file, in its order.

    Args:
        path: ``answers.jsonl``.

    Raises:
        DataError: The file is missing, or a line is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; run vlora eval with kind: generation first")
    for number, found in enumerate(_lines(path), start=1):
        if isinstance(found, Exception):
            raise DataError(f"{path} line {number}: {_reason(found)}")
        yield found


def read_whole_answers(path: str | Path) -> tuple[list[AnswerRecord], int]:
    """Records of the whole lines of an unfinished file and the number of damaged ones; none where there is no file."""
    found = list(_lines(Path(path))) if Path(path).is_file() else []
    whole = [record for record in found if isinstance(record, AnswerRecord)]
    return whole, len(found) - len(whole)


def _lines(path: Path) -> Iterator[AnswerRecord | Exception]:
    """Of every line its record, or what is wrong with it."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield AnswerRecord.from_dict(json.loads(line))
            except (ValueError, DataError) as error:
                yield error


def _reason(error: Exception) -> str:
    """What is wrong with a line, and its likely cure."""
    if isinstance(error, DataError):
        return str(error)
    return f"not valid JSON ({error}); the line may have been cut off, run the evaluation again"
