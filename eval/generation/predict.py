"""Answers of a posterior, generated or given: each with its confidence, its epistemic share, or "don't know".

    predictor = AnswerPredictor.from_pretrained("out/posterior", task="nq_open")
    for one in predictor.predict([{"question": "…"}]):
        print(one.answer, one.confidence)

Answers are made, scored and clustered by the very steps of ``vlora eval`` with ``kind: generation``, under the settings
that ``vlora calibrate`` stored. An answer depends on its question alone, not on its place among the rows: its random
stream is keyed by a hash of the prompt. With a task of given answers (``evouna_nq``) the rows bring their answers, and
what is decided is which of them to trust.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

from vlora.config import load_config
from vlora.data import Source
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.generation.answer_prediction import AnswerPrediction, answer_prediction
from vlora.eval.generation.collect import Collector
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.decide import decide_answers
from vlora.eval.generation.meaning import make_judge
from vlora.eval.generation.questions import Encoder, Question
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.generation.session import answer_chunk
from vlora.eval.generation.slim import slim
from vlora.eval.generation.voices import speakers
from vlora.eval.host import Host, check_same_base
from vlora.eval.item_warnings import say_truncated
from vlora.eval.predict_settings import other_task
from vlora.eval.subjects import Subject, base_model_of
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.calibration import answer_decisions_of
from vlora.posterior.draws import check_draws, known_covariance

__all__ = ["AnswerPrediction", "AnswerPredictor"]


class AnswerPredictor:
    """A posterior folder with its base model, ready to answer open questions.

    Attributes:
        decisions: What was fitted by ``vlora calibrate``, or stand-ins without a threshold.
        reader: Turns rows of the task into prompts.
        calibrated: Whether they were fitted.
    """

    def __init__(
        self,
        subject: Subject,
        config: GenerationConfig,
        base_model: str,
        decisions: AnswerDecisions,
        reader: TaskReader,
        *,
        calibrated: bool,
    ) -> None:
        self.decisions, self.reader, self.calibrated = decisions, reader, calibrated
        self._subject, self._config, self._base = subject, config, base_model

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        base_model: str | None = None,
        task: str | None = None,
        num_samples: int | None = None,
        covariance: str | None = None,
        fewshot: Source | None = None,
        device: str | None = None,
        **loading: Any,
    ) -> "AnswerPredictor":
        """Read a posterior folder or plain adapter and what was fitted for its answers.

        Args:
            source: Folder or hub id.
            base_model: Folder or hub id; None takes the one that the adapter names.
            task: Task file of kind ``open_qa`` or ``given_answers``; None takes that of the calibration.
            num_samples: Posterior draws where nothing was fitted (8); a calibration fixes them.
            covariance: Of the draws where nothing was fitted (``independent``), or ``leading``.
            fewshot: Rows with answers, for prompts that begin with examples.
            device: None takes the accelerator if there is one.
            **loading: Further keys of the configuration of answers; a calibration fixes those that it depends on.

        Raises:
            PosteriorFormatError: The folder, or its calibration, is damaged or belongs to another model.
            ConfigError: No task or base model is known, or settings differ from those of the calibration.
        """
        stored = Posterior.from_pretrained(source)
        fitted = answer_decisions_of(stored)
        reader = _reader(fitted, task, fewshot)
        decisions = fitted or _stand_in(reader, num_samples, covariance)
        for name, value in (("num_samples", num_samples), ("covariance", covariance)):
            if value is not None and value != getattr(decisions, name):
                raise ConfigError(
                    f"{name} is {value} but the calibration was fitted with {getattr(decisions, name)}; leave it "
                    "out, or run vlora calibrate with it"
                )
        config = _config(str(source), decisions, base_model=base_model, device=device, **loading)
        subject = Subject(config.models[0].name or "model", str(source), _at_width(stored, decisions))
        name = base_model_of([subject], config)
        check_same_base({str(source): stored}, name, config.revision)
        return cls(subject, config, name, decisions, reader, calibrated=fitted is not None)

    @cached_property
    def host(self) -> Host:
        """Base model and tokenizer, loaded when the first question is answered."""
        return Host(self._config, self._base, task="causal_lm")

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        answer_all: bool = False,
        tick: Callable[[int], object] = int,
    ) -> list[AnswerPrediction]:
        """Answer questions, or judge given answers, in their order.

        Args:
            rows: Columns by name, as the task has them; right answers are not needed and not looked at.
            answer_all: Answer also where the threshold says "don't know"; ``trusted`` of a given answer stays.
            tick: Called with the number of questions answered.

        Raises:
            DataError: A row lacks a column or holds a bad value, or the model gives NaN.
        """
        if not rows:
            return []
        formed = self.reader(rows)
        records = self._records([_question(row) for row in formed], tick)
        decided = decide_answers(self.decisions, records)
        found = []
        for number, (row, record) in enumerate(zip(formed, records, strict=True)):
            score = None if decided.uncertainty is None else float(decided.uncertainty[number])
            given = bool(decided.answered[number]) or (answer_all and record.attempted)
            item = str(row["id"]) if row["id"] is not None else str(number)
            found.append(
                answer_prediction(
                    record,
                    self.decisions.abstention,
                    item=item,
                    confidence=float(decided.confidence[number]),
                    score=score,
                    given=given,
                    trusted=self._trusted(record, bool(decided.answered[number])),
                )
            )
        return found

    def _trusted(self, record: AnswerRecord, kept: bool) -> bool | None:
        """Whether a given answer is to be trusted; None for a generated one, and without a threshold."""
        return kept if record.answer.given and self.decisions.abstention is not None else None

    def _records(self, questions: Sequence[Question], tick: Callable[[int], object]) -> list[AnswerRecord]:
        """Answers with their scores, a few questions at a time; verdicts of a judge are not kept."""
        config, model = self._config, self.host.model
        generation = getattr(model, "generation_config", None)
        encoder = Encoder(config, self.reader.task, self.host.tokenizer, model.config, generation)
        samples = config.sampling.num_answers > 0
        cut = [encoder.truncated(question, samples=samples) for question in questions]
        cure = "give shorter questions, or run vlora calibrate with a larger data.max_length"
        say_truncated(["data"] * len(cut), cut, "generation", config.data.max_length, cure)
        (speaker,) = speakers([self._subject], config.num_samples, config.antithetic)
        found: list[AnswerRecord] = []
        with tempfile.TemporaryDirectory() as cache, speaker.on(self.host) as voices:
            device = next(model.parameters()).device
            judge = make_judge(config.judge, config.judge.cache or cache, device)
            collector = Collector(config, encoder, voices, decline=self.reader.task.decline, judge=judge)
            for start in range(0, len(questions), config.batch_size):
                chunk = questions[start : start + config.batch_size]
                found += answer_chunk(collector, chunk)
                tick(len(chunk))
        return found


def _question(row: Mapping[str, Any]) -> Question:
    """A row as a question whose random streams depend on its prompt alone."""
    name = hashlib.sha256(row["prompt"].encode()).hexdigest()[:16]
    given = row.get("response")
    return Question(f"data/{name}", "test", "data", row["prompt"], row["question"], response=given)


def _reader(fitted: AnswerDecisions | None, task: str | None, fewshot: Source | None) -> TaskReader:
    """The reader of the task asked for, else of the one that was fitted on."""
    name = task or (fitted.task_file if fitted is not None else None)
    if name is None:
        raise ConfigError(
            "name a task file of open questions by task (nq_open, mine.yaml): it says how rows become prompts"
        )
    reader = TaskReader(name, fewshot, "answers")
    if fitted is not None and other_task(reader, fitted):
        raise ConfigError(
            f"task is {name} but the answers were calibrated with {fitted.task_file}, asked in another way; leave task "
            "out, or run vlora calibrate with it"
        )
    return reader


def _stand_in(reader: TaskReader, num_samples: int | None, covariance: str | None) -> AnswerDecisions:
    """Decisions where nothing was fitted: no threshold, confidences as they are."""
    draws = 8 if num_samples is None else num_samples
    return AnswerDecisions(
        task_file=reader.name,
        task_sha256="",
        num_samples=draws,
        antithetic=draws % 2 == 0,
        covariance=known_covariance(covariance),
    )


def _at_width(stored: Posterior, decisions: AnswerDecisions) -> Posterior:
    """The posterior at the width and with the covariance that was fitted with."""
    if not stored.has_hess:
        return stored
    drawing = stored.drawing(decisions.covariance)
    if decisions.temperature is not None:
        drawing = drawing.at_temperature(decisions.temperature)
    elif decisions.std_scale != 1:
        drawing = drawing.scaled(decisions.std_scale)
    check_draws(drawing)
    return drawing


def _config(source: str, decisions: AnswerDecisions, **loading: Any) -> GenerationConfig:
    """The settings of the evaluation that made the fit, for other questions."""
    clash = sorted(decisions.settings.keys() & loading.keys())
    if clash:
        raise ConfigError(
            f"{clash[0]} is fixed by the calibration; leave it out, or run vlora calibrate with it"
        )
    rule = decisions.abstention
    values = {
        **{
            "kind": "generation",
            "model": source,
            "task": decisions.task_file,
            "output": "",
            "ensemble": False,
        },
        **{"num_samples": decisions.num_samples, "antithetic": decisions.antithetic},
        "covariance": decisions.covariance,
        "calibration": {"confidence": decisions.confidence, **({"score": rule.score} if rule else {})},
        **decisions.settings,
        **{name: value for name, value in loading.items() if value is not None},
    }
    try:
        return slim(load_config(GenerationConfig, values))
    except ConfigError as error:
        if not decisions.settings:
            raise
        raise PosteriorFormatError(
            f"calibration.json: the section 'answers' is damaged or of another version ({error}); run vlora calibrate "
            "again"
        ) from None
