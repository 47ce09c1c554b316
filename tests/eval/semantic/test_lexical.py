"""Similarity by words: hand-computed cases, a literal ROUGE-L, and properties."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.semantic.lexical import (
    answer_words,
    lexical_dissimilarity,
    normalise_answer,
    rouge_l,
    token_f1,
)

TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "dog"]), max_size=6).map(" ".join)


def test_published_anchor():
    assert lexical_dissimilarity(["the cat sat", "the cat ran", "a dog sat"]) == pytest.approx(
        -1 / 3, abs=1e-12
    )


def test_normalisation():
    assert normalise_answer("  The U.S.  Navy, an A-team! ") == "us navy ateam"
    assert normalise_answer("２０ km") == "20 km"
    assert answer_words("A.") == ["a."]


def test_token_f1_counts_repeated_words():
    assert token_f1("new york new york", "new york") == pytest.approx(2 * 2 / 6)
    assert token_f1("Wilhelm Röntgen", "Wilhelm Conrad Röntgen") == pytest.approx(0.8)
    assert token_f1("the", "an") == 0.0  # only articles: compared as they are
    assert token_f1("", "") == 1.0 and token_f1("", "cat") == 0.0


def literal_rouge_l(first: str, second: str) -> float:
    left, right = first.lower().split(), second.lower().split()

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    common = longest(0, 0)
    if not common:
        return float(not left and not right)
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall)


@given(TEXTS, TEXTS)
def test_rouge_l_is_the_definition_and_symmetric(first, second):
    assert rouge_l(first, second) == pytest.approx(literal_rouge_l(first, second))
    assert rouge_l(first, second) == rouge_l(second, first)
    assert rouge_l(first, first) == 1.0


@given(st.lists(TEXTS, min_size=2, max_size=6))
def test_repeated_answers_count_as_often_as_they_come(answers):
    pairs = [rouge_l(answers[i], answers[j]) for i in range(len(answers)) for j in range(i + 1, len(answers))]
    assert lexical_dissimilarity(answers) == pytest.approx(-sum(pairs) / len(pairs))


def test_one_answer_is_not_enough():
    with pytest.raises(DataError, match="at least two answers, got 1"):
        lexical_dissimilarity(["cat"])
