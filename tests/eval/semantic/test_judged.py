"""p(True), SelfCheck and sentences."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.semantic.judged import contradiction_rate, p_true, sentences


def test_p_true_sums_over_spellings_and_normalises_over_the_two_verdicts():
    assert p_true(np.log([0.3, 0.1]), np.log([0.05, 0.05])) == pytest.approx(0.8)
    assert p_true(np.log(0.3), -np.inf) == 1.0
    assert p_true(-2000.0, -2000.0) == pytest.approx(0.5)  # nothing underflows
    with pytest.raises(DataError, match="neither verdict"):
        p_true(-np.inf, -np.inf)


def test_contradiction_rate_leaves_neutral_out():
    table = [[[0.6, 0.2, 0.2], [0.0, 0.5, 0.5]], [[0.0, 1.0, 0.0], [0.9, 0.0, 0.1]]]
    assert contradiction_rate(table) == pytest.approx(np.mean([0.25, 1.0, 0.5, 0.1]))
    with pytest.raises(DataError, match="sum to 1"):
        contradiction_rate([[[0.5, 0.0, 0.0]]])
    with pytest.raises(DataError, match="sentences, samples, 3"):
        contradiction_rate([])


def test_sentences():
    assert sentences("He left. Did she? Yes!") == ["He left.", "Did she?", "Yes!"]
    assert sentences("no end") == ["no end"]
    assert sentences("") == [""]
