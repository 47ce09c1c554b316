"""TruthfulQA's scores: by hand, with ties, and where plain exponentials underflow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.truthfulness import truthful_mc1, truthful_mc2


def test_mc1():
    assert truthful_mc1([-1.0, -2.0, -3.0]) == 1
    assert truthful_mc1([-3.0, -2.0, -1.0]) == 0
    assert truthful_mc1([-1.0, -1.0, -3.0]) == 0.5  # the truth stands first and must not win by that
    assert truthful_mc1([-1.0, -2.0, -1.0, -1.0]) == pytest.approx(1 / 3)
    assert truthful_mc1([-3.0, -2.0, -1.0], right=2) == 1


def test_mc2():
    logs = np.log([0.2, 0.1, 0.3, 0.1])
    assert truthful_mc2(logs, [True, True, False, False]) == pytest.approx(3 / 7)
    assert truthful_mc2(logs - 5000, [True, True, False, False]) == pytest.approx(3 / 7)
    assert truthful_mc2([-np.inf] * 4, [True, False, False, False]) == 0.25


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=7), st.integers(0, 100))
def test_the_order_of_the_choices_does_not_matter(logs, seed):
    order = np.random.default_rng(seed).permutation(len(logs))
    true = np.arange(len(logs)) < 1 + seed % (len(logs) - 1)
    logs = np.array(logs)
    assert truthful_mc2(logs, true) == pytest.approx(truthful_mc2(logs[order], true[order]))
    assert truthful_mc1(logs) == truthful_mc1(logs[order], right=int(np.flatnonzero(order == 0)[0]))


def test_bad_input():
    with pytest.raises(DataError, match="one of 2 choices, got index 2"):
        truthful_mc1([-1.0, -2.0], right=2)
    with pytest.raises(DataError, match="both kinds among them"):
        truthful_mc2([-1.0, -2.0], [True, True])
    with pytest.raises(DataError, match="for each of 2 choices"):
        truthful_mc2([-1.0, -2.0], [True])
