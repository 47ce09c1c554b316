"""Clusters: the papers' algorithm by hand, each answer in exactly one, and the word-only default."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.semantic.clusters import (
    cluster_by,
    entailment_clusters,
    relation_array,
    text_clusters,
    token_f1_clusters,
)

E, N, C = (0.8, 0.15, 0.05), (0.1, 0.7, 0.2), (0.05, 0.15, 0.8)


def relations(table: dict[tuple[int, int], tuple], size: int) -> np.ndarray:
    return np.array([[table.get((i, j), N) for j in range(size)] for i in range(size)])


def test_both_directions_must_entail():
    table = {(0, 1): E, (1, 0): E, (0, 2): E, (2, 0): N}
    assert entailment_clusters(relations(table, 3)).tolist() == [0, 0, 1]
    # lax: 0 entails 2 and 2 is neutral to 0; no contradiction and not both neutral
    assert entailment_clusters(relations(table, 3), strict=False).tolist() == [0, 0, 0]
    table[2, 0] = C
    assert entailment_clusters(relations(table, 3), strict=False).tolist() == [0, 0, 1]


def test_an_answer_joins_one_cluster_only_although_entailment_is_not_transitive():
    table = {(0, 2): E, (2, 0): E, (1, 2): E, (2, 1): E}  # 2 is like 0 and like 1, which differ
    assert entailment_clusters(relations(table, 3)).tolist() == [0, 1, 0]


def test_the_first_member_stands_for_its_cluster():
    table = {(0, 1): E, (1, 0): E, (1, 2): E, (2, 1): E}  # 2 is like 1, which is not the first of its cluster
    assert entailment_clusters(relations(table, 3)).tolist() == [0, 0, 1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_an_equivalence_is_found_exactly(classes):
    found = cluster_by(len(classes), lambda i, j: classes[i] == classes[j])
    for i in range(len(classes)):
        for j in range(len(classes)):
            assert (found[i] == found[j]) == (classes[i] == classes[j])
    assert sorted(set(found.tolist())) == list(range(found.max() + 1))


def test_words():
    answers = ["Paris", "the Paris.", "in Paris", "Paris, France", "London"]
    assert text_clusters(answers).tolist() == [0, 0, 1, 2, 3]
    assert token_f1_clusters(answers).tolist() == [0, 0, 0, 0, 1]
    assert token_f1_clusters(answers, threshold=0.7).tolist() == [0, 0, 1, 2, 3]
    assert text_clusters(["...", "!", "..."]).tolist() == [0, 1, 0]


def test_bad_input():
    with pytest.raises(DataError, match=r"shape \(M, M, 3\), got \(2, 3\)"):
        relation_array(np.ones((2, 3)))
    with pytest.raises(DataError, match="that sum to 1"):
        relation_array(np.ones((2, 2, 3)))
    with pytest.raises(DataError, match=r"lie in \(0, 1\], got 0"):
        token_f1_clusters(["a"], threshold=0)
