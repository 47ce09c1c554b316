"""Right, wrong, declined, and not to be had."""

import numpy as np
import pytest

from vlora.eval.generation.config import GradeConfig, JudgeConfig
from vlora.eval.generation.grading import grade, is_attempt
from vlora.eval.generation.meaning import find_meaning
from vlora.eval.semantic.entropy import semantic_entropy


@pytest.mark.parametrize(
    ("by", "answer", "references", "expected"),
    [
        ("exact", "The Blue.", ["blue"], 1), ("exact", "dark blue", ["blue"], 0), ("exact", "x", [], 0),
        ("exact", "...", ["..."], 1), ("exact", "!", ["?"], 0),
        ("contains", "it is dark blue, I think", ["red", "Dark Blue"], 1), ("contains", "blue dark", ["dark blue"], 0),
        ("contains", "blueish", ["blue"], 0), ("f1", "dark blue", ["blue"], 1), ("f1", "very dark blue", ["blue"], 1),
        ("f1", "w b c d", ["d"], 0),
    ],
)  # fmt: skip
def test_by_words(by, answer, references, expected):
    assert grade(answer, references, GradeConfig(by=by)) == (expected, 0)


def test_attempts():
    assert is_attempt("Blue") and not is_attempt("  ")
    assert not is_attempt("I don’t know, sorry", ["I don't know"])
    assert is_attempt("I do know", ["I don't know"])


class Judge:
    """Equal first letters entail; a word with x breaks it."""

    def relations(self, pairs):
        rows = []
        for premise, hypothesis in pairs:
            first, second = premise.split()[-1], hypothesis.split()[-1]
            verdict = [0.9, 0.05, 0.05] if first[0] == second[0] else [0.05, 0.05, 0.9]
            rows.append([np.nan] * 3 if "x" in first + second else verdict)
        return np.array(rows)


def test_by_entailment_with_failures_counted():
    config = GradeConfig(by="entailment")
    assert grade("bee", ["ant", "bat"], config, judge=Judge()) == (1, 0)
    assert grade("bee", ["ant"], config, judge=Judge()) == (0, 0)
    assert grade("bee", ["xen", "bat"], config, judge=Judge()) == (1, 2)
    assert grade("bee", ["xen", "ant"], config, judge=Judge()) == (None, 2)  # it might have been right


def test_meanings_by_words_and_by_entailment():
    texts, sampled = ["blue", "dark blue", "red"], [0, 1, 2, 2]
    words = find_meaning("q", texts, sampled, JudgeConfig())
    assert words.clusters.tolist() == [0, 0, 1] and words.clusters_by == "token_f1"
    assert set(words.measured) == {"kernel_language_entropy"}
    assert find_meaning("q", texts, sampled, JudgeConfig(clusters_by="text")).clusters.tolist() == [0, 1, 2]
    config = JudgeConfig(clusters_by="entailment", model="m")
    judged = find_meaning("q", ["ant", "bee", "ape"], [0, 1, 2, 1], config, Judge())
    assert judged.clusters.tolist() == [0, 1, 0] and judged.failures == 0
    assert judged.measured["contradiction"] == pytest.approx(np.mean([0.05 / 0.95, 0.9 / 0.95] * 2))
    low = find_meaning("q", ["ant", "ape"], [0, 1, 1], config, Judge()).measured["kernel_language_entropy"]
    assert low is not None and low < judged.measured["kernel_language_entropy"]
    assert semantic_entropy(judged.clusters) > 0


def test_where_the_judge_fails_texts_tell_meanings_apart_and_it_is_counted():
    config = JudgeConfig(clusters_by="entailment", model="m")
    found = find_meaning("q", ["ant", "xen", "Ant!"], [0, 1, 2], config, Judge())
    assert (found.clusters.tolist(), found.clusters_by, found.failures) == ([0, 1, 0], "text", 4)
    assert found.measured == {"kernel_language_entropy": None, "contradiction": None}
