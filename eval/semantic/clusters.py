"""Answers of one meaning as one cluster, from pairwise verdicts or, without any model, from words.

Bidirectional entailment (Kuhn et al. 2023, arXiv:2302.09664, algorithm 1; Farquhar et al. 2024,
doi:10.1038/s41586-024-07421-0): an answer joins the first cluster whose first member entails it and is entailed by
it. Each answer joins exactly one cluster. Greedy, so the result may depend on the order of the answers: entailment as
models judge it is not transitive.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, numbers
from vlora.eval.semantic.lexical import answer_words, normalise_answer, token_f1

__all__ = [
    "ENTAILMENT",
    "cluster_by",
    "entailment_clusters",
    "relation_array",
    "text_clusters",
    "token_f1_clusters",
]

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
"""Places of the three relations in the last axis of a relation array."""

DEFAULT_F1 = 0.6


def relation_array(values: Any) -> Array:
    """Check pairwise relations: ``[i, j]`` holds p(entailment, neutral, contradiction) of "i implies j".

    Args:
        values: Probabilities of shape ``(M, M, 3)``; the diagonal is not read.

    Returns:
        float64 copy with "entails itself" on the diagonal.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    array = numbers("relations", values).copy()
    if array.ndim != 3 or array.shape[0] != array.shape[1] or array.shape[2] != 3 or not array.size:
        raise DataError(f"relations must have shape (M, M, 3), got {array.shape}")
    array[np.arange(len(array)), np.arange(len(array))] = [1.0, 0.0, 0.0]
    if np.isnan(array).any() or array.min() < 0 or np.abs(array.sum(axis=2) - 1).max() > 1e-3:
        raise DataError(
            "relations must be probabilities of entailment, neutral and contradiction that sum to 1"
        )
    return array


def cluster_by(count: int, same: Callable[[int, int], bool]) -> IntArray:
    """Greedy clusters: each item joins the first cluster whose first member is the same as it, else opens one.

    Args:
        count: Items, M.
        same: Whether a first member (smaller index) and an item mean the same.

    Returns:
        Cluster of every item, numbered 0, 1, … in the order in which they open. Shape ``(M,)``.
    """
    firsts: list[int] = []
    found = np.empty(count, dtype=np.int64)
    for item in range(count):
        cluster = next((number for number, first in enumerate(firsts) if same(first, item)), len(firsts))
        if cluster == len(firsts):
            firsts.append(item)
        found[item] = cluster
    return found


def entailment_clusters(relations: Any, *, strict: bool = True) -> IntArray:
    """Clusters by bidirectional entailment.

    Args:
        relations: As for :func:`relation_array`.
        strict: Both directions must be judged entailment. ``False`` is the papers' lax rule: neither is a
            contradiction and not both are neutral.

    Returns:
        Cluster of every answer, shape ``(M,)``.

    Raises:
        DataError: Relations of a wrong shape or not probabilities.
    """
    verdict = relation_array(relations).argmax(axis=2)

    def same(first: int, item: int) -> bool:
        pair = {int(verdict[first, item]), int(verdict[item, first])}
        if strict:
            return pair == {ENTAILMENT}
        return CONTRADICTION not in pair and pair != {NEUTRAL}

    return cluster_by(len(verdict), same)


def text_clusters(answers: Sequence[str]) -> IntArray:
    """Clusters of answers that are equal once normalised (case, punctuation, articles, spaces)."""
    keys = [normalise_answer(answer) or answer.strip().lower() for answer in answers]
    return cluster_by(len(keys), lambda first, item: keys[first] == keys[item])


def token_f1_clusters(answers: Sequence[str], *, threshold: float = DEFAULT_F1) -> IntArray:
    """Clusters of answers whose token F1 with the cluster's first member reaches a threshold.

    Needs no model and knows no meaning: a paraphrase in other words is another cluster, and a negation may share
    one. For short factual answers.

    Args:
        answers: Texts.
        threshold: F1 in (0, 1].

    Raises:
        DataError: A threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise DataError(f"a token F1 threshold must lie in (0, 1], got {threshold}")
    words = [" ".join(answer_words(answer)) for answer in answers]
    return cluster_by(len(words), lambda first, item: token_f1(words[first], words[item]) >= threshold)
