"""Scores of one model: taken from the store where they are, made where they are not."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlora.eval.costs import cost_rows, item_tokens, spent_on_scores
from vlora.eval.environment import peak_memory_bytes
from vlora.eval.forward import Draws
from vlora.eval.item_warnings import say_truncated, set_of
from vlora.eval.linearised import Wanted, WantedShare, linearised_name, share_name
from vlora.eval.linearised_gate import linearised_agreement, text_agreement
from vlora.eval.prepare import Evaluation
from vlora.eval.records import Record
from vlora.eval.rows import make_records
from vlora.eval.score import Scorer, collect, run_scorer
from vlora.eval.sink import Sink, draw_name
from vlora.eval.store import ScoreFile, ScoreStore
from vlora.eval.subjects import Subject
from vlora.eval.text_stages import Stage, stages
from vlora.posterior import Posterior
from vlora.posterior.decisions import Kind

__all__ = ["count_truncated", "missing_vectors", "open_scores", "score_subject"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Linearised:
    """What first order in the weights says about every item."""

    covariances: list[Any]
    """Of the outputs."""
    drawn: list[Any] | None
    """At the width and with the covariance of the draws; None without draws."""
    shares: list[float] | None
    """Of the prior variance that the data left; None where that is not asked for."""


def open_scores(evaluation: Evaluation, subject: Subject, store: ScoreStore) -> ScoreFile:
    """The file of a model's scores in a store."""
    names = {key: item.example.item for key, item in zip(evaluation.item_keys, evaluation.items, strict=True)}
    return store.open(evaluation.content(subject), names=names)


def count_truncated(evaluation: Evaluation, file: ScoreFile) -> dict[str, int]:
    """Items that lose tokens, by set, said in one line; from the store where it knows, else from the tokenizer."""
    known: list[Any] = [file.layouts.get(key, {}).get("truncated") for key in evaluation.item_keys]
    sets, config = [set_of(item) for item in evaluation.items], evaluation.config
    truncated = evaluation.scorer.truncated if None in known else known
    return say_truncated(sets, truncated, config.task, config.data.max_length)


def missing_vectors(evaluation: Evaluation, subject: Subject, file: ScoreFile) -> list[int | None]:
    """Parameter vectors that some item still has to be scored under: draw numbers, None for the mean."""
    which = _which(evaluation, subject)
    if evaluation.config.task == "causal_lm":
        return (
            which if any(_lacks(stage, subject, file) for stage in _stages(evaluation, subject, file)) else []
        )
    sink = _sink(evaluation, subject, which, file)
    items = range(len(evaluation.items))
    return [draw for number, draw in enumerate(which) if sink.wants(items, slice(number, number + 1))]


def score_subject(
    evaluation: Evaluation, subject: Subject, file: ScoreFile, tick: Callable[[int], object]
) -> tuple[list[Record], dict[str, Any]]:
    """Records of one model, and what they cost, what an earlier run paid included.

    No model is loaded when the file has everything.

    Args:
        evaluation: Models and items.
        subject: The model.
        file: Its scores, from :func:`open_scores`; it is added to.
        tick: Called with items times parameter vectors as they are done.

    Raises:
        DataError: The model gives NaN.
        OutputError: The file cannot be written.
    """
    found: dict[int, Any] = {}
    names: list[str] = []
    for stage in _stages(evaluation, subject, file):
        missing = _missing(stage, subject, file)
        if missing:
            _score(stage, subject, file, missing, tick)
        sink = _sink(stage.evaluation, subject, _which(evaluation, subject), file, suffix=stage.suffix)
        found |= {place: sink.result(item) for item, place in enumerate(stage.places)}
        names += sink.draws
    linearised = _linearised(evaluation, subject, file)
    which = _which(evaluation, subject)
    layouts = [file.layouts[key] for key in evaluation.item_keys]
    lengths = (
        [layout["lengths"] for layout in layouts] if evaluation.config.task == "multiple_choice" else None
    )
    scores = collect([found[item] for item in range(len(layouts))], lengths)
    records = make_records(
        subject.name,
        evaluation.items,
        layouts,
        scores,
        antithetic=evaluation.config.antithetic and len(which) > 1,
        classes=evaluation.classes,
        covariances=None if linearised is None else linearised.covariances,
        shares=None if linearised is None else linearised.shares,
    )
    facts = {
        "seconds": file.seconds,
        "forward_tokens": round(file.tokens),
        "peak_memory_bytes": peak_memory_bytes(),
        "estimators": _costs(evaluation, subject, file, names, records),
    }
    drawn = None if linearised is None else linearised.drawn
    if linearised is not None and linearised.shares is not None:
        assert subject.as_read is not None and subject.as_read.directions is not None
        facts["share_left_precision"] = subject.as_read.directions.share_precision
    agreement = None
    if drawn is not None and records[0].lm is not None:
        variances = [covariance[0][0] for covariance in drawn]
        agreement = text_agreement(records, variances, evaluation.num_samples(subject))
    elif drawn is not None:
        agreement = linearised_agreement(records, drawn)
    if agreement is not None:
        facts["linearised"] = agreement
        if not agreement.passed:
            logger.warning(
                "%s: the linearised predictive does not follow the draws (%s)",
                subject.name,
                agreement.describe(),
            )
    return records, facts


def _stages(evaluation: Evaluation, subject: Subject, file: ScoreFile) -> Iterator[Stage]:
    """What is scored one after another."""
    names = [draw_name(draw, evaluation.config.antithetic) for draw in _which(evaluation, subject)]
    return stages(evaluation, subject, file, "|".join(names))


def _lacks(stage: Stage, subject: Subject, file: ScoreFile) -> bool:
    """Whether some text of a stage has still to be scored."""
    sink = _sink(stage.evaluation, subject, _which(stage.evaluation, subject), file, suffix=stage.suffix)
    return sink.wants(range(len(stage.places)))


def _missing(stage: Stage, subject: Subject, file: ScoreFile) -> list[int | None]:
    """Parameter vectors that some item of a stage still has to be scored under."""
    if stage.evaluation.config.task == "causal_lm":
        return _which(stage.evaluation, subject) if _lacks(stage, subject, file) else []
    return missing_vectors(stage.evaluation, subject, file)


def _score(
    stage: Stage,
    subject: Subject,
    file: ScoreFile,
    missing: Sequence[int | None],
    tick: Callable[[int], object],
) -> None:
    """Score what is missing and add it to the file."""
    evaluation = stage.evaluation
    config, scorer = evaluation.config, evaluation.scorer
    layouts = _layouts(scorer)
    sink = _sink(evaluation, subject, missing, file, tick=tick, layouts=layouts, suffix=stage.suffix)
    samples = evaluation.num_samples(subject)
    stage.set_up()
    with evaluation.host.wearing(subject.posterior) as model:
        draws = Draws(model, subject.posterior, samples, config.antithetic and samples > 0, config.scoring)
        run_scorer(scorer, draws, missing, sink)


def _linearised(evaluation: Evaluation, subject: Subject, file: ScoreFile) -> _Linearised | None:
    """Covariances and shares of every item, measured where the file lacks them; None if not asked for."""
    wanted, share = _wanted_covariances(evaluation, subject), _wanted_share(evaluation, subject)
    if not wanted:
        return None
    sink = Sink(evaluation.item_keys, [*wanted, *share], file=file, who=f"model {subject.name!r}")
    items = range(len(evaluation.items))
    if sink.wants(items):
        sink.layouts = _layouts(evaluation.scorer)
        with evaluation.host.wearing(subject.posterior) as model:
            evaluation.scorer.linearise(model, [*_by_kind(list(wanted.values())), *share.values()], sink)
    found = [sink.result(item) for item in items]
    drawn = [own[len(wanted) - 1] for own in found] if evaluation.num_samples(subject) else None
    return _Linearised([own[0] for own in found], drawn, [own[-1] for own in found] if share else None)


def _wanted_covariances(evaluation: Evaluation, subject: Subject) -> dict[str, tuple[Posterior, Kind]]:
    """Name in the store -> posterior and kind of every covariance that is used; none where none is asked for."""
    posterior = subject.posterior
    if not evaluation.config.linearised or posterior is None or subject.kind != "posterior":
        return {}
    kind = evaluation.config.linearised_kind
    wanted: dict[str, tuple[Posterior, Kind]] = {}
    if subject.prior is None:
        wanted[linearised_name(posterior, kind)] = posterior, kind
    else:
        wanted[_prior_name(subject, kind)] = subject.prior.posterior, kind
    if evaluation.num_samples(subject):  # draws are compared with the covariance that they have
        wanted[linearised_name(posterior, posterior.covariance)] = posterior, posterior.covariance
    return wanted


def _wanted_share(evaluation: Evaluation, subject: Subject) -> dict[str, WantedShare]:
    """Name in the store -> the share of the prior variance that the data left, of leading directions."""
    config, posterior = evaluation.config, subject.as_read
    if config.linearised != "leading" or config.task == "causal_lm" or subject.kind != "posterior":
        return {}
    assert posterior is not None
    return {share_name(posterior): WantedShare([posterior])}


def _by_kind(wanted: Sequence[tuple[Posterior, Kind]]) -> list[Wanted]:
    """Posteriors of one kind together, in their order, so that gradients are rotated once for both."""
    kinds: dict[Kind, None] = dict.fromkeys(kind for _, kind in wanted)
    return [Wanted([one for one, own in wanted if own == kind], kind) for kind in kinds]


def _costs(
    evaluation: Evaluation, subject: Subject, file: ScoreFile, draws: Sequence[str], records: Sequence[Record]
) -> list[dict[str, Any]]:
    """Rows of ``cost.by_estimator``: what the scores behind these records took, whichever run paid for them."""
    prompted = evaluation.config.data.prompt is not None
    whole = 0
    for key, record in zip(evaluation.item_keys, records, strict=True):
        layout = file.layouts[key]
        texts = [record.lm.num_tokens] if record.lm is not None and prompted else []
        whole += item_tokens(layout["prompt"], layout["lengths"] or texts)
    names = [*draws, *_wanted_covariances(evaluation, subject), *_wanted_share(evaluation, subject)]
    spent = spent_on_scores(file.batches, names, evaluation.item_keys)
    return cost_rows(subject.name, spent, len(records), whole)


def _prior_name(subject: Subject, kind: Kind) -> str:
    """Name of the covariances under the fitted prior in the store."""
    assert subject.prior is not None
    prior = subject.prior
    return linearised_name(prior.posterior, kind, prior=prior.precision)


def _layouts(scorer: Scorer) -> list[dict[str, Any]]:
    """Of every item its length in tokens, those of its choices, and whether it was cut."""
    lengths = getattr(scorer, "lengths", [None] * scorer.num_items)
    return [
        {"prompt": prompt, "lengths": own, "truncated": cut}
        for prompt, own, cut in zip(scorer.prompt_tokens, lengths, scorer.truncated, strict=True)
    ]


def _which(evaluation: Evaluation, subject: Subject) -> list[int | None]:
    return [None, *range(evaluation.num_samples(subject))]


def _sink(
    evaluation: Evaluation,
    subject: Subject,
    which: Sequence[int | None],
    file: ScoreFile,
    **more: Any,
) -> Sink:
    return Sink(
        evaluation.item_keys,
        [draw_name(draw, evaluation.config.antithetic) for draw in which],
        file=file,
        whole=evaluation.config.task == "causal_lm",
        who=f"model {subject.name!r}",
        **more,
    )
