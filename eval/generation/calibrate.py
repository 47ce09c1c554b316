"""``vlora calibrate`` with ``kind: generation``: a confidence and a threshold for "don't know" of generated answers.

The validation questions are divided by ``seed``: one part gives the grid of thresholds and the temperature of the
confidence, the other the threshold (:mod:`vlora.eval.generation.decide`). It is then verified on the test questions
and every out-of-distribution set. Answers are made as by ``vlora eval`` with the same settings; a killed run goes on.
Written is the section ``answers`` of ``calibration.json`` beside every adapter, and nothing else.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlora.config import to_plain
from vlora.errors import ConfigError, DataError
from vlora.eval.calibration_file import Calibrated, check_local, write_calibration
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.decide import fit_answers, validation_parts, verify_answers
from vlora.eval.generation.estimators import OF_QUESTION
from vlora.eval.generation.questions import Question, question_sources
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.generation.session import Session, answer_all, prepare_session, say_cut
from vlora.eval.generation.slim import slim
from vlora.eval.generation.store import AnswerStore
from vlora.eval.metrics.risk_control import items_for_risk
from vlora.eval.subjects import Subject
from vlora.eval.task_files import load_task
from vlora.eval.task_reader import TaskReader
from vlora.posterior.answer_decisions import KEY as ANSWERS
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.kinds import source_identity

__all__ = ["run_answer_calibration"]

logger = logging.getLogger(__name__)

SETTINGS = ("sampling", "judge", "grade", "p_true", "eigenscore", "seed", "dtype", "quantization")
"""Settings that an answer or its score depends on, besides draws and data."""
FORM = ("max_length", "chat", "system")
"""The same of ``data``."""


def run_answer_calibration(config: GenerationConfig) -> list[Calibrated]:
    """Fit every adapter of an evaluation of answers on ``data.validation`` and write its ``calibration.json``.

    Args:
        config: The configuration of the evaluation. Of a task of given answers the threshold says which of them to
            trust.

    Returns:
        One entry per posterior and plain adapter; the base model is passed over.

    Raises:
        ConfigError: No validation questions, no adapter in a local folder, or a score that given answers do not have.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read, too few questions, or answers that lack the score.
        OutputError: A file cannot be written.
    """
    kind = load_task(config.task).kind
    config = replace(config, ensemble=False, detect={}, calibration=config.calibration.for_task(kind))
    if kind == "given_answers" and config.calibration.score in OF_QUESTION:
        raise ConfigError(
            f"calibration.score: {config.calibration.score} is that of a question, the same for every answer that is "
            "given to it; choose one of the answer (token_nll, mixture_per_token, disagreement, p_true)"
        )
    session = prepare_session(slim(config))
    asked = [speaker for speaker in session.speakers if speaker.members[0].posterior is not None]
    if not asked:
        raise ConfigError("no model of this configuration is an adapter, so calibration.json has no place")
    subjects = {speaker.name: speaker.members[0] for speaker in asked}
    check_local(list(subjects.values()))
    parts = _parts(session)
    session, store = replace(session, speakers=asked), AnswerStore(f"{config.output}.calibrate")
    say_cut(session)
    found, done = answer_all(session, store), []
    for name, subject in subjects.items():
        decisions = _fit(session, subject, parts, {record.item: record for record in found[name][0]})
        done.append(write_calibration(subject, {ANSWERS: decisions.to_json()}, (ANSWERS,)))
    store.remove(session.keys, session.verdicts(store))
    return done


def _parts(session: Session) -> tuple[list[str], list[str]]:
    """Names of the questions for grid and temperature, and of those for the threshold."""
    config = session.config
    questions = [question for question in session.questions if question.split == "validation"]
    if not questions:
        raise ConfigError(
            "data.validation is needed: calibration fits on questions apart from the test questions"
        )
    _check_apart(questions, [question for question in session.questions if question.split == "test"])
    parts = validation_parts(len(questions), config.calibration.threshold_share, config.seed)
    first, second = ([questions[i].item for i in part] for part in parts)
    return first, second


def _check_apart(validation: Sequence[Question], test: Sequence[Question]) -> None:
    """Refuse to verify on the questions of the fit; say so when some of them are among the test questions."""
    fitted, asked = {(q.prompt, q.response) for q in validation}, [(q.prompt, q.response) for q in test]
    shared = sum(one in fitted for one in asked)
    if shared == len(asked):
        raise ConfigError(
            f"all {shared} test questions are among the validation questions, so nothing can be verified on them; "
            "give other rows as data.validation"
        )
    if shared:
        logger.warning("%d of %d test questions are among the validation questions", shared, len(asked))


def _fit(
    session: Session,
    subject: Subject,
    parts: tuple[Sequence[str], Sequence[str]],
    records: Mapping[str, AnswerRecord],
) -> AnswerDecisions:
    """Decisions of one adapter, verified."""
    config = session.config
    try:
        first, second = ([records[name] for name in part] for part in parts)
        power, rule = fit_answers(first, second, config.calibration)
    except DataError as error:
        raise DataError(f"{subject.name}: {error}") from None
    plain, temperature = to_plain(config), config.temperature
    decisions = AnswerDecisions(
        task_file=config.task,
        task_sha256=TaskReader(
            config.task, question_sources(config, session.task).get("fewshot"), "answers"
        ).sha256,
        num_samples=config.num_samples,
        antithetic=config.antithetic,
        std_scale=1.0 if subject.fitted is None else float(subject.fitted["std_scale"]),
        temperature=temperature if isinstance(temperature, (int, float)) else None,
        covariance=config.covariance,
        directions_sha256=_directions(subject),
        settings={
            **{name: plain[name] for name in SETTINGS},
            "data": {name: plain["data"][name] for name in FORM},
        },
        confidence=config.calibration.confidence,
        power=power,
        abstention=rule,
    )
    _warn(decisions, subject.name, "trusted" if session.task.kind == "given_answers" else "answered")
    sets = dict.fromkeys(question.set for question in session.questions if question.split != "validation")
    verified = [
        verify_answers(decisions, [records[q.item] for q in session.questions if q.set == name], name)
        for name in sets
    ]
    return replace(decisions, verified=verified)


def _directions(subject: Subject) -> str | None:
    """Hash of the leading directions that draws were made with; None for other draws."""
    posterior = subject.posterior
    if posterior is None or posterior.covariance == "independent":
        return None
    return source_identity(posterior, posterior.covariance)["directions_sha256"]


def _warn(decisions: AnswerDecisions, name: str, done: str) -> None:
    """Say where no threshold could be shown to keep the risk."""
    rule = decisions.abstention
    if rule is not None and np.isinf(rule.threshold):
        logger.warning(
            "%s: no threshold on %s could be shown to keep the error rate at %g, so nothing is %s; it "
            "takes at least %d right answers in a row among the most certain ones, another calibration.score, or a "
            "larger calibration.risk",
            *(name, rule.score, rule.risk, done, items_for_risk(rule.risk, rule.delta)),
        )
