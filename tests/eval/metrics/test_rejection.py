"""Prediction rejection: the lm-polygraph anchor, the oracle, random orders, ties."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.rejection import prediction_rejection_ratio, rejection_area
from vlora.eval.metrics.selective import aurc

U, QUALITY = [0.1, 0.4, 0.35, 0.8, 0.2, 0.9, 0.5, 0.3], [1, 0, 1, 0, 1, 1, 0, 1]


def test_lm_polygraph_anchor():
    assert rejection_area(U, QUALITY) == pytest.approx(0.832887, abs=5e-7)
    assert rejection_area(-np.array(QUALITY), QUALITY) == pytest.approx(0.896577, abs=5e-7)
    # The random area is .625 exactly; lm-polygraph simulates it as .62596 and gets .7646.
    assert prediction_rejection_ratio(U, QUALITY) == pytest.approx(0.7655, abs=5e-5)
    simulated = (0.832887 - 0.62596) / (0.896577 - 0.62596)
    assert simulated == pytest.approx(0.7646, abs=5e-5)


def test_truncated_anchor_by_hand():
    # Half of eight answers: those kept are the first 8, 7, 6, 5 in order of certainty, 5 4 4 4 of them right.
    area = np.mean([5 / 8, 4 / 7, 4 / 6, 4 / 5])
    oracle = np.mean([5 / 8, 5 / 7, 5 / 6, 5 / 5])
    assert rejection_area(U, QUALITY, 0.5) == pytest.approx(area)
    assert prediction_rejection_ratio(U, QUALITY, 0.5) == pytest.approx((area - 0.625) / (oracle - 0.625))


def test_simulated_random_orders_of_lm_polygraph():
    """Its random area is a mean over 1000 shuffles from seed 42: .62596, and PRR@.5 .2401 where .2425 is exact."""
    stream, order, areas = np.random.RandomState(42), np.arange(8), []
    for _ in range(1000):
        stream.shuffle(order)
        areas.append([rejection_area(order, QUALITY, share) for share in (1.0, 0.5)])
    whole, half = np.mean(areas, axis=0)
    area, oracle = rejection_area(U, QUALITY, 0.5), rejection_area(-np.array(QUALITY), QUALITY, 0.5)
    assert whole == pytest.approx(0.62596, abs=5e-6)
    assert (area - half) / (oracle - half) == pytest.approx(0.2401, abs=5e-5)
    assert prediction_rejection_ratio(U, QUALITY, 0.5) == pytest.approx(0.2425, abs=5e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(0, 2**31), st.booleans())
def test_properties(size, seed, coarse):
    rng = np.random.default_rng(seed)
    u = rng.integers(3, size=size).astype(float) if coarse else rng.normal(size=size)
    right = np.append([0.0, 1.0], rng.integers(2, size=size - 2))
    quality = rng.random(size)
    order = rng.permutation(size)
    ratio = prediction_rejection_ratio(u, quality)
    assert rejection_area(u, right) == pytest.approx(1 - aurc(u, right))
    assert prediction_rejection_ratio(-quality, quality) == pytest.approx(1)
    assert prediction_rejection_ratio(np.zeros(size), quality) == pytest.approx(0, abs=1e-9)
    assert ratio <= 1 + 1e-9
    assert prediction_rejection_ratio(u[order], quality[order]) == pytest.approx(ratio)
    assert prediction_rejection_ratio(np.exp(u), 3 * quality - 7) == pytest.approx(ratio)


def test_ties_are_the_mean_over_orders():
    quality = np.array([0.2, 0.9, 0.4])
    areas = [rejection_area(np.arange(3.0), quality[list(order)]) for order in permutations(range(3))]
    assert rejection_area(np.zeros(3), quality) == pytest.approx(np.mean(areas))


def test_undefined_and_bad_input():
    assert np.isnan(prediction_rejection_ratio([1.0, 2.0], [0.5, 0.5]))
    with pytest.raises(DataError, match="reject at least 1 of 2 answers, got 0.1"):
        rejection_area([1.0, 2.0], [0, 1], 0.1)
    with pytest.raises(DataError, match="one entry per item"):
        rejection_area([1.0], [0, 1])
