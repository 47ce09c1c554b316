"""What evaluations and calibrations of answers share: read everything, then let every model answer, resumably."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlora.config import to_plain
from vlora.errors import ConfigError, DataError
from vlora.eval.costs import Spent
from vlora.eval.entailment import EntailmentModel, judge_hash, verdict_file
from vlora.eval.environment import versions
from vlora.eval.generation.collect import Collector
from vlora.eval.generation.columns import ALL
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.costs import merged
from vlora.eval.generation.meaning import make_judge
from vlora.eval.generation.questions import Encoder, Question, load_questions
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.generation.store import AnswerStore
from vlora.eval.generation.voices import Speaker, ensemble_of, speakers
from vlora.eval.host import Host, check_same_base
from vlora.eval.item_warnings import say_truncated
from vlora.eval.store import content_key
from vlora.eval.subjects import base_model_of, load_subjects
from vlora.eval.task_files import TaskFile, load_task
from vlora.posterior import fingerprint_weights

__all__ = ["Session", "answer_all", "answer_chunk", "prepare_session", "say_cut"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What was read; the base model is loaded when the first question needs it."""

    config: GenerationConfig
    task: TaskFile
    task_sha256: str
    shots: list[str]
    questions: list[Question]
    speakers: list[Speaker]
    base_model: str
    repeated: int = 0
    """Questions that repeat an earlier one of their set."""

    @cached_property
    def host(self) -> Host:
        """Base model and tokenizer."""
        return Host(self.config, self.base_model, task="causal_lm")

    @cached_property
    def encoder(self) -> Encoder:
        """Texts to tokens and back."""
        model = self.host.model
        return Encoder(
            self.config,
            self.task,
            self.host.tokenizer,
            model.config,
            getattr(model, "generation_config", None),
        )

    @cached_property
    def shared_key(self) -> str:
        """Hash of what all models share: base model, questions, and the settings that change an answer or a score."""
        config, plain = self.config, to_plain(self.config)
        names = ("sampling", "grade", "p_true", "eigenscore", "num_samples", "dtype", "quantization", "seed")
        judge = {k: v for k, v in plain["judge"].items() if k not in ("cache", "batch_size")}
        verdicts = fingerprint_weights(config.judge.model) if config.judge.model else None
        base = fingerprint_weights(self.base_model, config.revision) or [self.base_model, config.revision]
        form = [config.data.max_length, config.data.chat, config.data.system]
        return content_key(
            [
                base, self.task_sha256, [asdict(q) for q in self.questions], judge, verdicts, form, versions(),
                *(plain[name] for name in names),
            ]
        )  # fmt: skip

    def key(self, speaker: Speaker) -> str:
        """Hash of everything that one model's answers depend on."""
        return content_key([speaker.content(), self.shared_key])

    @property
    def keys(self) -> dict[str, str]:
        """Name -> key of every model."""
        return {speaker.name: self.key(speaker) for speaker in self.speakers}

    def verdicts(self, store: AnswerStore) -> Path | None:
        """File of the judge's verdicts among the unfinished answers; None without a judge or with a cache elsewhere."""
        judge = self.config.judge
        if judge.model is None or judge.cache is not None:
            return None
        return verdict_file(store.path, judge_hash(judge.model, judge.revision))


def prepare_session(config: GenerationConfig) -> Session:
    """Read adapters and data and check that they fit together, before any model is loaded."""
    task, subjects = load_task(config.task), load_subjects(config)
    base_model = base_model_of(subjects, config)
    posteriors = {s.name: s.posterior for s in subjects if s.posterior is not None}
    check_same_base(posteriors, base_model, config.revision)
    questions, sha256, shots, repeated = load_questions(config, task)
    _check_questions(config, questions)
    models = speakers(subjects, config.num_samples, config.antithetic)
    ensemble = ensemble_of(subjects, config.ensemble)
    everyone = models + ([ensemble] if ensemble else [])
    return Session(config, task, sha256, shots, questions, everyone, base_model, repeated)


def _check_questions(config: GenerationConfig, questions: Sequence[Question]) -> None:
    """Mistakes in names are found now and not after hours of sampling."""
    groups = list(dict.fromkeys(q.group for q in questions if q.split != "validation"))
    if ALL in groups and len(groups) > 1 + len(config.data.ood):
        raise DataError(
            f"{ALL!r} is the name for all test rows together; rename that value of the task's group"
        )
    for name, question in config.detect.items():
        for group in (*question.positive, *question.negative):
            if group not in (*groups, ALL):
                raise ConfigError(f"detect.{name}: no group {group!r}; the data hold {', '.join(groups)}")


def say_cut(session: Session) -> dict[str, int]:
    """Questions whose prompts lose tokens, by set, said in one line before anything is generated."""
    samples = session.config.sampling.num_answers > 0
    sets = [question.set for question in session.questions]
    cut = [session.encoder.truncated(question, samples=samples) for question in session.questions]
    return say_truncated(sets, cut, "generation", session.config.data.max_length)


def answer_all(
    session: Session, store: AnswerStore
) -> dict[str, tuple[list[AnswerRecord], dict[str, Spent]]]:
    """Records of every model and what their steps took, in an earlier, killed run too."""
    store.foreign(session.keys)
    kept = {name: store.load(name, key) for name, key in session.keys.items()}
    if any(kept.values()):
        told = ", ".join(f"{name} {len(found)}" for name, found in kept.items() if found)
        logger.info(
            "continuing: %s of %d answers were there, in %s", told, len(session.questions), store.path
        )
    found, total = {}, len(session.questions) * len(session.speakers)
    with tqdm(total=total, unit="question", desc="answer", disable=None) as bar:
        for speaker in session.speakers:
            bar.set_postfix_str(speaker.name)
            records = kept[speaker.name]
            bar.update(len(records))
            known = {record.item for record in records}
            missing = [q for q in session.questions if q.item not in known]
            if missing:
                records = records + _answer(session, speaker, missing, store, bar)
            by_item = {record.item: record for record in records}
            costs = merged(store.costs(speaker.name, session.key(speaker)), list(by_item))
            found[speaker.name] = ([by_item[q.item] for q in session.questions], costs)
    return found


def _answer(
    session: Session, speaker: Speaker, questions: Sequence[Question], store: AnswerStore, bar: Any
) -> list[AnswerRecord]:
    """Records of one model, kept a few questions at a time."""
    config, key, records = session.config, session.key(speaker), []
    judge = _judge(session, store)
    with speaker.on(session.host) as voices:
        collector = Collector(config, session.encoder, voices, decline=session.task.decline, judge=judge)
        for start in range(0, len(questions), config.batch_size):
            chunk = questions[start : start + config.batch_size]
            made = answer_chunk(collector, chunk)
            store.append(speaker.name, key, made, collector.meter.take())
            records += made
            bar.update(len(chunk))
    return records


def _judge(session: Session, store: AnswerStore) -> EntailmentModel | None:
    judge = session.config.judge
    device = next(session.host.model.parameters()).device
    return make_judge(judge, judge.cache or str(store.path), device)


def answer_chunk(collector: Collector, questions: Sequence[Question]) -> list[AnswerRecord]:
    """Records of some questions; when the device has no room for them, of their halves."""
    try:
        return collector.records(questions)
    except torch.OutOfMemoryError:
        if len(questions) == 1:
            raise
    torch.cuda.empty_cache()  # outside the handler: its traceback would keep the failed batch alive
    middle = len(questions) // 2
    return answer_chunk(collector, questions[:middle]) + answer_chunk(collector, questions[middle:])
