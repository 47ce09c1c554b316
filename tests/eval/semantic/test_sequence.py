"""Scores of token log-probabilities: closed forms, bounds, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.semantic import sequence

LOGS = st.lists(st.floats(-30, 0), min_size=1, max_size=6)


def test_one_answer_in_closed_form():
    logs = np.log([0.5, 0.25, 0.8])
    assert sequence.negative_log_likelihood(logs) == pytest.approx(-np.log(0.1))
    assert sequence.token_nll(logs) == pytest.approx(-np.log(0.1) / 3)
    assert sequence.perplexity(logs) == pytest.approx(10 ** (1 / 3))
    assert sequence.least_likely_token(logs) == pytest.approx(np.log(4))
    assert sequence.mean_token_entropy([1.0, 2.0, 4.5]) == pytest.approx(2.5)
    assert sequence.max_token_entropy([1.0, 2.0, 4.5]) == 4.5


def test_several_answers_in_closed_form():
    answers = [np.log([0.5, 0.5]), np.log([0.1])]
    assert sequence.monte_carlo_entropy(answers) == pytest.approx((np.log(4) + np.log(10)) / 2)
    assert sequence.length_normalised_entropy(answers) == pytest.approx((np.log(2) + np.log(10)) / 2)


def test_monte_carlo_entropy_is_unbiased_for_the_entropy_of_the_string():
    probs = np.array([0.6, 0.3, 0.1])
    drawn = np.random.default_rng(0).choice(3, 20_000, p=probs)
    estimate = sequence.monte_carlo_entropy([[np.log(probs[k])] for k in drawn])
    assert estimate == pytest.approx(-(probs * np.log(probs)).sum(), abs=0.015)


def test_draws_in_closed_form():
    logs = np.log([0.2, 0.6])
    assert sequence.answer_mixture(logs) == pytest.approx(np.log(0.4))
    expected = np.log(0.4) - (np.log(0.2) + np.log(0.6)) / 2
    assert sequence.reverse_information(logs) == pytest.approx(expected)
    assert sequence.spread_of_draws(logs) == pytest.approx(np.log(3) / np.sqrt(2))
    assert np.isnan(sequence.spread_of_draws([-1.0]))


def test_an_impossible_answer():
    assert sequence.answer_mixture([-np.inf, -np.inf]) == -np.inf
    assert sequence.reverse_information([-np.inf, -np.inf]) == 0
    assert sequence.reverse_information([-np.inf, -1.0]) == np.inf
    assert sequence.answer_mixture([-np.inf, -1.0]) == pytest.approx(-1 - np.log(2))
    assert sequence.perplexity([-1e4]) == np.inf


@given(LOGS)
def test_the_mixture_is_never_below_the_mean_of_the_draws(logs):
    assert sequence.answer_mixture(logs) >= np.mean(logs) - 1e-9
    assert sequence.reverse_information(logs) >= 0
    assert sequence.answer_mixture([logs[0]] * 5) == pytest.approx(logs[0])


def test_long_strings_do_not_underflow():
    assert sequence.answer_mixture([-5000.0, -5000.0 + np.log(3)]) == pytest.approx(-5000 + np.log(2))


def test_bad_input():
    with pytest.raises(DataError, match="must be <= 0, got 0.5; were probabilities"):
        sequence.negative_log_likelihood([0.5])
    with pytest.raises(DataError, match="non-empty 1-D"):
        sequence.token_nll([])
    with pytest.raises(DataError, match="holds 1 NaN"):
        sequence.mean_token_entropy([np.nan, 1.0])
