"""The questions of an evaluation: rows of a task, with the tokens of their prompts and of answers that are given."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlora.data import RowFormat, Source, encode_continuation, fitting_length
from vlora.errors import ConfigError, DataError
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.item_warnings import say_repeated
from vlora.eval.task_config import task_sources
from vlora.eval.task_files import TaskFile
from vlora.eval.task_rows import TaskRows, read_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoder", "Question", "load_questions", "question_sources", "stop_token_ids"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One row."""

    item: str
    """``<split>/<number or identity>``, unique within a run."""
    split: str
    """``test``, ``validation`` or ``ood``."""
    group: str
    """Part of the test set, or name of the out-of-distribution set."""
    prompt: str
    """What the model reads."""
    question: str
    """The question alone."""
    references: tuple[str, ...] = ()
    """Right answers; none when the question has no answer."""
    response: str | None = None
    """Answer that is given; None when the model answers."""
    correct: bool | None = None
    """Whether the given answer is right."""

    @property
    def set(self) -> str:
        """Name of the set that it belongs to: ``test``, ``validation``, or that of an out-of-distribution set."""
        return self.group if self.split == "ood" else self.split


def load_questions(config: GenerationConfig, task: TaskFile) -> tuple[list[Question], str, list[str], int]:
    """Read all sets: test, validation, out-of-distribution.

    Returns:
        The questions, the hash of the task with the examples in its prompts, these examples, and how many questions
        repeat an earlier one of their set.

    Raises:
        ConfigError: A task that this kind of evaluation does not score.
        DataError: Data that cannot be read.
    """
    if task.kind == "multiple_choice":
        raise ConfigError(
            f"task {config.task} is multiple choice; leave out kind: generation to score its choices"
        )
    data, sources = config.data, question_sources(config, task)
    sets: list[tuple[str, str, Source]] = [("test", "test", sources["test"])]
    if "validation" in sources:
        sets.append(("validation", "validation", sources["validation"]))
    sets += [("ood", name, source) for name, source in data.ood.items()]
    questions: list[Question] = []
    for split, name, source in sets:
        found = _read(config, task, source, sources.get("fewshot"), name)
        questions += [_question(row, split, name) for row in found.rows]
        if split == "test":
            sha256, shots = found.sha256, found.shots
    contents = [(q.prompt, q.references, q.response, q.correct) for q in questions]
    repeated = say_repeated([q.item for q in questions], [q.set for q in questions], contents)
    if task.kind == "open_qa":
        _count_unanswerable(questions)
    return questions, sha256, shots, repeated


def question_sources(config: GenerationConfig, task: TaskFile) -> dict[str, Any]:
    """Where the rows are: ``test``, and ``validation`` and ``fewshot`` where there are any.

    Raises:
        ConfigError: Neither data nor a place on the hub.
        DataError: The folder does not hold the task's test file.
    """
    data = config.data
    sources: dict[str, Any] = {} if data.test is not None else task_sources(task, config.task, data.folder)
    given = {"test": data.test, "validation": data.validation, "fewshot": data.fewshot}
    return sources | {name: source for name, source in given.items() if source is not None}


def _count_unanswerable(questions: Sequence[Question]) -> None:
    """Say how many questions have no right answer, which may be meant and may be a gap in the data."""
    test = [question for question in questions if question.split == "test"]
    missing = sum(not question.references for question in test)
    if missing:
        logger.warning(
            "%d of %d test questions have no right answer: every attempt at them counts as wrong",
            *(missing, len(test)),
        )


def _read(
    config: GenerationConfig, task: TaskFile, source: Source, fewshot: Source | None, name: str
) -> TaskRows:
    if isinstance(source, dict):
        from vlora.data import SourceConfig

        source = SourceConfig(**source)
    data = config.data
    return read_task(task, source, fewshot=fewshot, max_rows=data.max_rows, seed=data.seed, name=name)


def _question(row: dict[str, Any], split: str, name: str) -> Question:
    return Question(
        item=f"{name}/{row['item']}",
        split=split,
        group=row["group"] if split == "test" else name,
        prompt=row["prompt"],
        question=row["question"],
        references=tuple(row.get("references", ())),
        response=row.get("response"),
        correct=row.get("correct"),
    )


class Encoder:
    """Texts to tokens and back, as one task and one tokenizer have it.

    Attributes:
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer.
    """

    def __init__(
        self,
        config: GenerationConfig,
        task: TaskFile,
        tokenizer: "PreTrainedTokenizerBase",
        model_config: Any,
        generation_config: Any = None,
    ) -> None:
        data = config.data
        self.tokenizer = tokenizer
        self.row_format = RowFormat(
            separator=task.separator, chat=data.chat, system=data.system, max_length=data.max_length
        )
        self.max_new_tokens = config.sampling.max_new_tokens or task.max_new_tokens
        self.limit = fitting_length(self.row_format, tokenizer, model_config)
        if self.limit <= self.max_new_tokens:
            raise ConfigError(
                f"max_new_tokens is {self.max_new_tokens} but prompt and answer together get {self.limit} tokens "
                "(data.max_length, or what the model takes); shorten the answers or allow longer sequences"
            )
        self.stop = task.stop
        self.stop_ids = stop_token_ids(tokenizer, task.stop, generation_config)

    def prompt(self, text: str) -> list[int]:
        """Tokens of a prompt, cut at its front so that an answer fits behind it.

        Raises:
            DataError: There are none.
        """
        limit = self.limit - self.max_new_tokens
        ids = encode_continuation(self.tokenizer, text, "", self.row_format, max_length=limit).input_ids
        if not ids:
            raise DataError("a prompt has no token; give the tokenizer a BOS token or the prompt a text")
        return ids

    def continuation(self, prompt: str, text: str) -> tuple[list[int], list[int]]:
        """Tokens of a prompt and of what follows it."""
        made = encode_continuation(self.tokenizer, prompt, text, self.row_format, max_length=self.limit)
        first = max(made.prompt_length, 1)
        return made.input_ids[:first], made.input_ids[first:]

    def truncated(self, question: Question, *, samples: bool) -> bool:
        """Whether a prompt loses tokens so that an answer fits behind it.

        Args:
            question: One question, with or without a given answer.
            samples: Whether answers are also drawn.
        """
        room = self.limit - self.max_new_tokens
        if question.response is None:
            return encode_continuation(
                self.tokenizer, question.prompt, "", self.row_format, max_length=room
            ).truncated
        made = encode_continuation(
            self.tokenizer, question.prompt, question.response, self.row_format, max_length=self.limit
        )
        return made.truncated or (samples and made.prompt_length > room)

    def text(self, ids: Sequence[int]) -> str:
        """Answer in words: special tokens dropped, cut at the first stop text, without outer spaces."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        for stop in self.stop:
            text = text.lstrip().partition(stop)[0] if stop.isspace() else text.partition(stop)[0]
        return text.strip()


def stop_token_ids(
    tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str], generation_config: Any = None
) -> frozenset[int]:
    """Tokens that end an answer: end of sequence, and every token whose text holds a stop text.

    A stop text that no single token holds cuts the text all the same, only later.
    """
    ids: set[int] = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}  # pyright: ignore
    configured = getattr(generation_config, "eos_token_id", None)
    if configured is not None:
        ids |= set(configured) if isinstance(configured, list | tuple) else {int(configured)}
    if stop:
        texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
        ids |= {index for index, text in enumerate(texts) if any(mark in text for mark in stop)}
    return frozenset(ids)
