"""What is said to one open question or about one given answer, and how it follows from its record."""

from dataclasses import dataclass

import numpy as np

from vlora.eval.generation.estimators import item_scores
from vlora.eval.generation.records import AnswerRecord
from vlora.posterior.abstention import Abstention

__all__ = ["AnswerPrediction", "answer_prediction"]

NUM_ALTERNATIVES = 5
"""Meanings of sampled answers that are told."""


@dataclass(frozen=True, kw_only=True)
class AnswerPrediction:
    """What is said to one question."""

    item: str
    """The row's ``id``, else its number."""
    answer: str | None
    """The greedy answer of the mean, or the given one; None for "don't know"."""
    dont_know: bool
    """Whether the threshold says not to answer, or the model declines by itself."""
    best: str
    """The same, whether the threshold lets it through or not."""
    trusted: bool | None
    """Of an answer that came with its row, whether the threshold trusts it; None for a generated one, and without a
    calibration."""
    confidence: float
    """Probability that it is right, at the fitted temperature; without a calibration the probability of its words."""
    score: str | None
    """Which uncertainty is held against the threshold; None without a calibration."""
    uncertainty: float | None
    """Its value, higher is less certain; None where it could not be had, which is "don't know"."""
    threshold: float | None
    """The answer is given up to this uncertainty; None where nothing is answered, or nothing was calibrated."""
    entropy: float | None
    """Entropy over the meanings of the sampled answers in nats; None without samples."""
    epistemic: float | None
    """Mutual information of meaning and parameters in nats, high where more data would help; None without draws."""
    epistemic_share: float | None
    """Its part of the entropy, in [0, 1]: near 0 the question is ambiguous, near 1 the model has not learnt it."""
    alternatives: tuple[tuple[str, float], ...]
    """Sampled meanings, the most frequent first: one text of each, and its share of the samples."""


def answer_prediction(
    record: AnswerRecord,
    rule: Abstention | None,
    *,
    item: str,
    confidence: float,
    score: float | None,
    given: bool,
    trusted: bool | None = None,
) -> AnswerPrediction:
    """A record with what was decided about it, as a prediction.

    Args:
        record: The question answered.
        rule: The rule for "don't know"; None where nothing was calibrated.
        item: Name of the row.
        confidence: Probability that the answer is right, at the fitted temperature.
        score: Value of the rule's score, infinite where it could not be had.
        given: Whether the answer is given.
        trusted: Whether an answer that came with its row is to be trusted.
    """
    scores = item_scores(record)
    total = scores.get("scored_semantic_total", scores.get("semantic_entropy"))
    information = scores.get("scored_semantic_information")
    share = None if information is None or total is None else _share(information, total)
    known = rule is not None and np.isfinite(rule.threshold)
    return AnswerPrediction(
        item=item,
        answer=record.answer.text if given else None,
        dont_know=not given,
        best=record.answer.text,
        trusted=trusted,
        confidence=confidence,
        score=None if rule is None else rule.score,
        uncertainty=score if score is not None and np.isfinite(score) else None,
        threshold=rule.threshold if rule is not None and known else None,
        entropy=total,
        epistemic=information,
        epistemic_share=share,
        alternatives=_alternatives(record),
    )


def _share(information: float, total: float) -> float:
    """Part of the entropy that is mutual information; the correction for few draws may carry it over 1."""
    return 0.0 if total <= 0 else min(max(information / total, 0.0), 1.0)


def _alternatives(record: AnswerRecord) -> tuple[tuple[str, float], ...]:
    """Sampled meanings with their shares, by the first text of each."""
    texts: dict[int, str] = {}
    counts: dict[int, int] = {}
    for sample in record.samples:
        pooled = record.pool[sample.pool]
        texts.setdefault(pooled.cluster, pooled.text)
        counts[pooled.cluster] = counts.get(pooled.cluster, 0) + 1
    ranked = sorted(counts, key=lambda cluster: -counts[cluster])[:NUM_ALTERNATIVES]
    return tuple((texts[cluster], counts[cluster] / len(record.samples)) for cluster in ranked)
