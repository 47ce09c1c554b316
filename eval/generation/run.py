"""One evaluation of answers from start to end: read, sample and score every model, compute, write the folder.

Written are ``answers.jsonl`` (what every model said about every question), ``results.json`` (what follows from it),
``report.html`` (the same for people) and ``config.yaml`` (the settings as resolved), in one rename.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vlora.config import save_config, to_plain
from vlora.errors import ConfigError, DataError
from vlora.eval.costs import Spent
from vlora.eval.entailment import EntailmentModel
from vlora.eval.environment import hardware, peak_memory_bytes, versions
from vlora.eval.generation.collect import Collector
from vlora.eval.generation.columns import ALL
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.costs import answer_costs, merged
from vlora.eval.generation.files import ANSWER_FORMAT, write_answer_results
from vlora.eval.generation.meaning import make_judge
from vlora.eval.generation.questions import Encoder, Question, load_questions
from vlora.eval.generation.records import AnswerRecord, to_line
from vlora.eval.generation.report import write_answer_report
from vlora.eval.generation.results import compute_answer_results
from vlora.eval.generation.store import AnswerStore
from vlora.eval.generation.voices import Speaker, ensemble_of, speakers
from vlora.eval.host import Host, check_same_base
from vlora.eval.item_warnings import say_truncated
from vlora.eval.store import content_key
from vlora.eval.subjects import base_model_of, load_subjects
from vlora.eval.task_files import TaskFile, load_task
from vlora.files import atomic_folder, atomic_write, check_output_folder
from vlora.posterior import fingerprint_weights

__all__ = ["ANSWERS", "run_generation"]

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
RESULTS = "results.json"
REPORT = "report.html"
CONFIG = "config.yaml"


def run_generation(config: GenerationConfig) -> Path:
    """Evaluate and write the output folder; a killed run continues with the questions it had not answered.

    Returns:
        The output folder, holding ``answers.jsonl``, ``results.json``, ``report.html`` and ``config.yaml``.

    Raises:
        OutputExistsError: The output folder holds something else, or an evaluation and ``overwrite`` is false.
        OutputError: The output cannot be written.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read.
        ConfigError: Settings that do not fit together.
    """
    output = check_output_folder(config.output, RESULTS, overwrite=config.overwrite)
    start, run, store = time.perf_counter(), _prepare(config), AnswerStore(output)
    truncated = _truncated(run)
    found = _answer_all(run, store)
    records = [record for answers, _ in found.values() for record in answers]
    measured = compute_answer_results(
        records,
        detect=to_plain(config.detect),
        threshold=config.threshold,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
    )
    results = {
        **_head(run),
        **measured,
        "truncated": truncated,
        "cost": {
            "seconds": time.perf_counter() - start,
            "seconds_by_model": {
                name: sum(s.seconds for s in spent.values()) for name, (_, spent) in found.items()
            },
            "by_estimator": [row for own, spent in found.values() for row in answer_costs(own, spent)],
            "questions": len(run.questions),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    }
    _say(measured)
    with atomic_folder(output) as folder:
        atomic_write(folder / ANSWERS, "".join(to_line(record) for record in records))
        write_answer_results(folder / RESULTS, results)
        write_answer_report(results, folder / REPORT)
        save_config(config, folder / CONFIG)
    store.remove()
    return output


def _say(measured: Mapping[str, Any]) -> None:
    """Count what the judge left out, and say where nothing can be ranked."""
    ranked = {row["model"] for row in measured["estimators"] if row["group"] == ALL}
    for row in measured["answers"]:
        if row["group"] != ALL:
            continue
        if row["ungraded"] or row["judge_failures"]:
            logger.warning(
                "%s: the judge gave no verdict on %d pairs; %d of %d answers could not be graded, all are kept",
                *(row["model"], row["judge_failures"], row["ungraded"], row["questions"]),
            )
        if row["metrics"] and row["model"] not in ranked:
            logger.warning(
                "%s: its attempts are all right or all wrong, so no score of them can be ranked (AUROC, PRR)",
                row["model"],
            )


@dataclass(frozen=True)
class _Run:
    """What was read; the base model is loaded when the first question needs it."""

    config: GenerationConfig
    task: TaskFile
    task_sha256: str
    shots: list[str]
    questions: list[Question]
    speakers: list[Speaker]
    base_model: str

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


def _prepare(config: GenerationConfig) -> _Run:
    """Read adapters and data and check that they fit together, before any model is loaded."""
    task, subjects = load_task(config.task), load_subjects(config)
    base_model = base_model_of(subjects, config)
    posteriors = {s.name: s.posterior for s in subjects if s.posterior is not None}
    check_same_base(posteriors, base_model, config.revision)
    questions, sha256, shots = load_questions(config, task)
    _check_questions(config, questions)
    models = speakers(subjects, config.num_samples, config.antithetic)
    ensemble = ensemble_of(subjects, config.ensemble)
    return _Run(config, task, sha256, shots, questions, models + ([ensemble] if ensemble else []), base_model)


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


def _truncated(run: _Run) -> dict[str, int]:
    """Questions whose prompts lose tokens, by set, said in one line before anything is generated."""
    samples = run.config.sampling.num_answers > 0
    sets = [question.set for question in run.questions]
    cut = [run.encoder.truncated(question, samples=samples) for question in run.questions]
    return say_truncated(sets, cut, "generation", run.config.data.max_length)


def _answer_all(run: _Run, store: AnswerStore) -> dict[str, tuple[list[AnswerRecord], dict[str, Spent]]]:
    """Records of every model and what their steps took, in an earlier, killed run too."""
    kept = {s.name: store.load(s.name, run.key(s)) for s in run.speakers}
    if any(kept.values()):
        told = ", ".join(f"{name} {len(found)}" for name, found in kept.items() if found)
        logger.info("continuing: %s of %d answers were there, in %s", told, len(run.questions), store.path)
    found, total = {}, len(run.questions) * len(run.speakers)
    with tqdm(total=total, unit="question", desc="answer", disable=None) as bar:
        for speaker in run.speakers:
            bar.set_postfix_str(speaker.name)
            records = kept[speaker.name]
            bar.update(len(records))
            known = {record.item for record in records}
            missing = [q for q in run.questions if q.item not in known]
            if missing:
                records = records + _answer(run, speaker, missing, store, bar)
            by_item = {record.item: record for record in records}
            costs = merged(store.costs(speaker.name, run.key(speaker)), list(by_item))
            found[speaker.name] = ([by_item[q.item] for q in run.questions], costs)
    return found


def _answer(
    run: _Run, speaker: Speaker, questions: Sequence[Question], store: AnswerStore, bar: Any
) -> list[AnswerRecord]:
    """Records of one model, kept a few questions at a time."""
    config, key, records = run.config, run.key(speaker), []
    judge = _judge(run, store)
    with speaker.on(run.host) as voices:
        collector = Collector(config, run.encoder, voices, decline=run.task.decline, judge=judge)
        for start in range(0, len(questions), config.batch_size):
            chunk = questions[start : start + config.batch_size]
            made = _halving(collector, chunk)
            store.append(speaker.name, key, made, collector.meter.take())
            records += made
            bar.update(len(chunk))
    return records


def _judge(run: _Run, store: AnswerStore) -> EntailmentModel | None:
    judge = run.config.judge
    device = next(run.host.model.parameters()).device
    return make_judge(judge, judge.cache or str(store.path), device)


def _halving(collector: Collector, questions: Sequence[Question]) -> list[AnswerRecord]:
    """Records of some questions; when the device has no room for them, of their halves."""
    try:
        return collector.records(questions)
    except torch.OutOfMemoryError:
        if len(questions) == 1:
            raise
    torch.cuda.empty_cache()  # outside the handler: its traceback would keep the failed batch alive
    middle = len(questions) // 2
    return _halving(collector, questions[:middle]) + _halving(collector, questions[middle:])


def _head(run: _Run) -> dict[str, Any]:
    """What the results are of."""
    config = run.config
    return {
        "format": ANSWER_FORMAT,
        "kind": "generation",
        "task": config.task,
        "task_sha256": run.task_sha256,
        "task_file": to_plain(run.task),
        "shots": run.shots,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_samples": config.num_samples,
        "num_answers": config.sampling.num_answers,
        "antithetic": config.antithetic,
        "clusters_by": config.judge.clusters_by,
        "num_bootstrap": config.num_bootstrap,
        "seed": config.seed,
        "models": [speaker.describe() for speaker in run.speakers],
        "settings": to_plain(config),
        "versions": versions(),
        "hardware": hardware(),
    }
