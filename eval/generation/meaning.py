"""Meanings of the answers to one question: clusters, and the scores that need pairwise verdicts.

Where the judge fails on a pair, the question's clusters fall back to equal texts and its judged scores are missing;
both are counted in the record.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlora.eval.entailment import EntailmentModel, Judge, pairwise_relations
from vlora.eval.generation.config import JudgeConfig
from vlora.eval.metrics.arrays import IntArray
from vlora.eval.semantic.clusters import entailment_clusters, text_clusters, token_f1_clusters
from vlora.eval.semantic.judged import contradiction_rate, sentences
from vlora.eval.semantic.kernels import (
    entailment_weights,
    kernel_language_entropy,
    similarity_weights,
)
from vlora.eval.semantic.lexical import token_f1

__all__ = ["Meaning", "find_meaning", "make_judge"]


@dataclass(frozen=True)
class Meaning:
    """What the answers to one question mean."""

    clusters: IntArray
    """Cluster of every distinct answer, shape ``(Y,)``."""
    clusters_by: str
    """How they were found."""
    measured: dict[str, float | None] = field(default_factory=dict)
    """``kernel_language_entropy`` and, with a judge of contradictions, ``contradiction``."""
    failures: int = 0
    """Pairs without a verdict."""


def find_meaning(
    question: str,
    texts: Sequence[str],
    sampled: Sequence[int],
    config: JudgeConfig,
    judge: Judge | None = None,
) -> Meaning:
    """Cluster distinct answers and measure how alike the sampled ones are.

    Args:
        question: The question.
        texts: Distinct answers, the judged one first.
        sampled: Index into ``texts`` of every sampled answer, repeated as drawn.
        config: How to compare.
        judge: For ``entailment``.
    """
    if config.clusters_by == "entailment" and judge is not None:
        return _judged(question, texts, sampled, config, judge)
    if config.clusters_by == "text":
        clusters = text_clusters(texts)
        alike = (clusters[:, None] == clusters).astype(np.float64)
    else:
        clusters = token_f1_clusters(texts, threshold=config.threshold)
        alike = np.array([[token_f1(first, second) for second in texts] for first in texts])
    weights = similarity_weights(alike[np.ix_(sampled, sampled)]) if len(sampled) > 1 else None
    measured = {} if weights is None else {"kernel_language_entropy": kernel_language_entropy(weights)}
    return Meaning(clusters, config.clusters_by, dict(measured))


def _judged(
    question: str, texts: Sequence[str], sampled: Sequence[int], config: JudgeConfig, judge: Judge
) -> Meaning:
    relations = pairwise_relations(judge, texts, question)
    failures = int(np.isnan(relations).any(axis=2).sum())
    contradicts = getattr(judge, "contradicts", True)
    wanted = ("kernel_language_entropy", *(("contradiction",) if contradicts else ()))
    measured: dict[str, float | None] = dict.fromkeys(wanted) if len(sampled) > 1 else {}
    if failures:
        return Meaning(text_clusters(texts), "text", measured, failures)
    clusters = entailment_clusters(relations, strict=config.strict)
    if len(sampled) > 1:
        weights = entailment_weights(relations[np.ix_(sampled, sampled)])
        measured["kernel_language_entropy"] = kernel_language_entropy(weights)
        if contradicts:
            parts = sentences(texts[0])
            asked = judge.relations([(texts[index], part) for part in parts for index in sampled])
            lost = int(np.isnan(asked).any(axis=1).sum())
            failures += lost
            if not lost:
                measured["contradiction"] = contradiction_rate(asked.reshape(len(parts), -1, 3))
    return Meaning(clusters, "entailment", measured, failures)


def make_judge(config: JudgeConfig, cache: str, device: object = "cpu") -> EntailmentModel | None:
    """The judge that the settings name, or None."""
    if config.model is None:
        return None
    return EntailmentModel(
        config.model, revision=config.revision, device=str(device), batch_size=config.batch_size, cache=cache
    )
