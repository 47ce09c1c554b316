"""Risk-coverage metrics: ties in expectation, closed forms against brute force."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.ranking import Ranking
from vlora.eval.metrics.selective import (
    Kept,
    accuracy_at_coverage,
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_coverage,
)


def plain_aurc(errors):
    """Mean over k of the error rate of the first k."""
    return np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1))


def test_lm_polygraph_anchor():
    u, quality = [0.1, 0.4, 0.35, 0.8, 0.2, 0.9, 0.5, 0.3], [1, 0, 1, 0, 1, 1, 0, 1]
    assert aurc(u, quality) == pytest.approx(0.167113, abs=5e-7)


def test_torch_uncertainty_docs_by_the_plain_mean():
    # predictions 0, 0, 0 with confidence .7, .6, .8 against labels 0, 1, 0
    assert aurc([-0.7, -0.6, -0.8], [1, 0, 1]) == pytest.approx(1 / 9)
    curve = risk_coverage([-0.7, -0.6, -0.8], [1, 0, 1])
    assert np.trapezoid(curve.risk, curve.coverage) / (1 - 1 / 3) == pytest.approx(1 / 12)


def test_tie_anchor_is_the_mean_between_best_and_worst_order():
    confidence, correct = np.array([0.9] * 4 + [0.5] * 2), np.array([1, 0, 1, 0, 0, 1])
    assert aurc(-confidence, correct) == pytest.approx(0.5)
    areas = [
        plain_aurc([*(1 - correct[list(first)]), *(1 - correct[list(last)])])
        for first in permutations(range(4))
        for last in permutations((4, 5))
    ]
    assert min(areas) == pytest.approx(0.2889, abs=5e-5)
    assert max(areas) == pytest.approx(0.7111, abs=5e-5)
    assert aurc(-confidence, correct) == pytest.approx(np.mean(areas))
    assert risk_coverage(-confidence, correct).risk == pytest.approx([0.5] * 6)


def test_accuracy_at_coverage_counts_up_and_takes_ties_in_expectation():
    u, correct = [1, 2, 3, 4, 5], [1, 1, 0, 1, 0]
    assert accuracy_at_coverage(u, correct, 0.8) == pytest.approx(3 / 4)
    assert accuracy_at_coverage(u, correct, 0.5) == pytest.approx(2 / 3)  # ceil(2.5) = 3 answers
    assert accuracy_at_coverage(u, correct, 1.0) == pytest.approx(3 / 5)
    assert accuracy_at_coverage([1, 2, 2], [1, 1, 0], 2 / 3) == pytest.approx(1.5 / 2)
    with pytest.raises(DataError, match=r"coverage must lie in \(0, 1\], got 0"):
        accuracy_at_coverage(u, correct, 0)


def test_augrc_by_hand_and_by_its_formula():
    # Errors kept after 1 … 4 answers: 0, 1, 1, 2 of 4.
    assert augrc([1, 2, 3, 4], [1, 0, 1, 0]) == pytest.approx((0 + 1 + 1 + 2) / 16)
    assert augrc([1, 1, 1, 1], [1, 0, 1, 0]) == pytest.approx((0.5 + 1 + 1.5 + 2) / 16)


def test_coverage_at_risk_is_the_last_crossing_in_whole_groups():
    correct = [1, 0, 1, 1, 1, 0]
    assert coverage_at_risk([1, 2, 3, 4, 5, 6], correct, 0.2) == pytest.approx(5 / 6)
    assert coverage_at_risk([1, 2, 3, 4, 5, 6], correct, 0.0) == pytest.approx(1 / 6)
    assert coverage_at_risk([1, 2, 3, 4, 5, 5], correct, 0.2) == pytest.approx(1 / 6)  # 5 and 6 only together
    assert coverage_at_risk([1, 1], [0, 1], 0.2) == 0.0
    assert coverage_at_risk([1, 2], [0, 0], 1.0) == 1.0
    with pytest.raises(DataError, match=r"risk must lie in \[0, 1\], got 2"):
        coverage_at_risk([1, 2], [0, 0], 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_properties(size, seed, coarse):
    rng = np.random.default_rng(seed)
    u = rng.integers(3, size=size).astype(float) if coarse else rng.normal(size=size)
    correct, order = rng.integers(2, size=size), rng.permutation(size)
    curve = risk_coverage(u, correct)
    assert aurc(u, correct) == pytest.approx(curve.risk.mean())
    assert curve.risk[-1] == pytest.approx(1 - correct.mean())
    assert aurc(u[order], correct[order]) == pytest.approx(aurc(u, correct))
    assert 0 <= excess_aurc(u, correct) <= aurc(u, correct) + 1e-12
    assert excess_aurc(1.0 - correct, correct) == pytest.approx(0, abs=1e-12)
    assert augrc(u, correct) == pytest.approx((curve.risk * curve.coverage).mean())
    assert augrc(1.0 - correct, correct) - 1e-12 <= augrc(u, correct) <= aurc(u, correct) + 1e-12
    oracle = plain_aurc(np.sort(1 - correct))
    assert aurc(u, correct) - excess_aurc(u, correct) == pytest.approx(oracle)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 2**31), st.booleans())
def test_resamples_equal_laid_out_resamples(size, seed, coarse):
    rng = np.random.default_rng(seed)
    u = rng.integers(3, size=size).astype(float) if coarse else rng.normal(size=size)
    correct = rng.integers(2, size=size).astype(float)
    drawn = rng.integers(size, size=(4, size))
    weights = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(float)
    kept = Kept.of(Ranking.of(u), correct, weights)
    for row, items in enumerate(drawn):
        assert kept.aurc()[row] == pytest.approx(aurc(u[items], correct[items]))
        assert kept.augrc()[row] == pytest.approx(augrc(u[items], correct[items]))
        assert kept.accuracy_at(0.7)[row] == pytest.approx(
            accuracy_at_coverage(u[items], correct[items], 0.7)
        )
