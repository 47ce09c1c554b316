"""DeLong's test: literal placements, ties, its level under no difference, and bad input."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.delong import compare_auroc, placements
from vlora.eval.metrics.ranking import auroc


def literal(score_a, score_b, positive):
    """DeLong et al. 1988, eq. 4-5, pair by pair; returns both areas and the variance of their difference."""
    parts = []
    for score in (score_a, score_b):
        high, low = score[positive == 1], score[positive == 0]
        psi = (high[:, None] > low) + 0.5 * (high[:, None] == low)
        parts.append((psi.mean(axis=1), psi.mean(axis=0)))
    (a10, a01), (b10, b01) = parts
    contrast = np.array([1.0, -1.0])
    covariance = np.cov([a10, b10]) / len(a10) + np.cov([a01, b01]) / len(a01)
    return a10.mean(), b10.mean(), contrast @ covariance @ contrast


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 30), st.integers(0, 2**31), st.booleans())
def test_equals_the_literal_form_with_and_without_ties(size, seed, coarse):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(4, size=(2, size)).astype(float) if coarse else rng.normal(size=(2, size))
    positive = np.concatenate([[0, 0, 1, 1], rng.integers(2, size=size - 4)])
    found, (area_a, area_b, variance) = compare_auroc(a, b, positive), literal(a, b, positive)
    assert (found.auroc_a, found.auroc_b) == pytest.approx((area_a, area_b))
    assert found.auroc_a == pytest.approx(auroc(a, positive))
    assert found.standard_error**2 == pytest.approx(variance, abs=1e-12)
    assert placements(a, positive)[1].mean() == pytest.approx(area_a)
    swapped, mapped = compare_auroc(b, a, positive), compare_auroc(np.exp(a), 3 * b, positive)
    assert swapped.difference == pytest.approx(-found.difference)
    assert swapped.p_value == pytest.approx(found.p_value)
    assert mapped.difference == pytest.approx(found.difference)
    assert 0 <= found.p_value <= 1 and found.low <= found.difference <= found.high


def test_by_hand():
    # Positives 3, 2 against negatives 1, 2: placements 1 and .75; of the negatives 1 and .75.
    of_positives, of_negatives = placements([3.0, 2.0, 1.0, 2.0], [1, 1, 0, 0])
    assert of_positives.tolist() == [1.0, 0.75] and of_negatives.tolist() == [1.0, 0.75]
    found = compare_auroc([3.0, 2.0, 1.0, 2.0], [0.0] * 4, [1, 1, 0, 0])
    assert found.difference == pytest.approx(0.375)
    assert found.standard_error**2 == pytest.approx(2 * 0.03125 / 2)


def test_equal_scores_have_no_difference_and_a_certain_one_is_certain():
    a, positive = np.arange(6.0), [0, 1, 0, 1, 0, 1]
    same = compare_auroc(a, a, positive)
    assert (same.difference, same.standard_error, same.p_value) == (0, 0, 1)
    split = compare_auroc([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    assert (split.difference, split.p_value) == (1, 0)


def test_level_under_no_difference():
    rng = np.random.default_rng(0)
    positive = np.repeat([0, 1], 60)
    p_values = []
    for _ in range(400):
        signal = positive + rng.normal(size=120)
        a, b = signal + rng.normal(size=(2, 120))
        p_values.append(compare_auroc(a, b, positive).p_value)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="both classes 0 and 1 are needed, got 2 positives of 2 items"):
        compare_auroc([1.0, 2.0], [1.0, 2.0], [1, 1])
    with pytest.raises(DataError, match="both classes 0 and 1 are needed"):
        placements([1.0, 2.0, 3.0], [0, 0.5, 1])
    with pytest.raises(DataError, match="at least 2 items of each class"):
        compare_auroc([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1, 0, 0])
    with pytest.raises(DataError, match="one entry per item"):
        compare_auroc([1.0, 2.0], [1.0], [1, 0])


def test_the_variance_of_draws_joins_that_of_the_items():
    rng = np.random.default_rng(3)
    a, b, positive = rng.normal(size=40), rng.normal(size=40), np.repeat([0.0, 1.0], 20)
    plain, drawn = compare_auroc(a, b, positive), compare_auroc(a, b, positive, draw_error=0.05)
    assert drawn.standard_error == plain.standard_error and drawn.difference == plain.difference
    total = np.hypot(plain.standard_error, 0.05)
    assert drawn.high - drawn.low == pytest.approx(2 * 1.959964 * total, rel=1e-6)
    assert drawn.p_value == pytest.approx(2 * NormalDist().cdf(-abs(plain.difference) / total))
    same = compare_auroc(a, a, positive, draw_error=0.05)
    assert same.p_value == 1 and same.high == pytest.approx(1.959964 * 0.05, rel=1e-6)
