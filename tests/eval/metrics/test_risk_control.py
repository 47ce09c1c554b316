"""Risk-controlled thresholds: the closed form without errors, exact error rates by enumeration, simulated coverage."""

from math import comb

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.binomial import binomial_tail
from vlora.eval.metrics.risk_control import (
    controlled_threshold,
    items_for_risk,
    likely_start,
    threshold_grid,
)


def test_fifty_nine_right_answers_prove_five_percent():
    assert items_for_risk(0.05, 0.05) == 59
    grid = [1.0]
    for n, proved in ((58, False), (59, True)):
        found = controlled_threshold(np.zeros(n), np.zeros(n), grid, risk=0.05, delta=0.05)
        assert (found.threshold == 1.0) is proved
        assert found.answered == (n if proved else 0) and found.n == n
    assert found.risk_bound == pytest.approx(1 - 0.05 ** (1 / 59)) and found.coverage == 1.0


def test_items_for_risk_with_errors_is_a_number_that_works():
    needed = items_for_risk(0.05, 0.1, error_rate=0.02)
    assert binomial_tail(int(np.ceil(0.02 * needed)), needed, 0.05) <= 0.1
    assert needed > items_for_risk(0.05, 0.1)


def test_threshold_is_the_laxest_of_an_unbroken_sequence():
    # 60 sure and right, 60 less sure and right, then 40 of which half are wrong.
    u, wrong = np.repeat([0.1, 0.5, 0.9], [60, 60, 40]), np.repeat([0, 0, 1, 0], [60, 60, 20, 20])
    found = controlled_threshold(u, wrong, [0.1, 0.5, 0.9], risk=0.05, delta=0.05, num_starts=1)
    assert (found.threshold, found.answered, found.wrong) == (0.5, 120, 0)
    assert found.coverage == pytest.approx(0.75)
    strict = controlled_threshold(u, wrong, [0.1, 0.5, 0.9], risk=0.01, delta=0.01)
    assert strict.threshold == -np.inf and strict.answered == 0 and strict.risk_bound == 1.0


def test_several_starts_get_past_thresholds_that_answer_too_few():
    rng = np.random.default_rng(0)
    u = rng.random(2000)
    wrong = (rng.random(2000) < 0.5 * np.maximum(u - 0.4, 0)).astype(int)
    grid = np.arange(1, 101) / 100  # the strictest ones answer about twenty items
    assert controlled_threshold(u, wrong, grid, num_starts=1).threshold == -np.inf
    found = controlled_threshold(u, wrong, grid, num_starts=5)
    assert 0.5 < found.threshold < 0.95 and found.wrong / found.answered < 0.05
    assert found.risk_bound <= 0.05


def test_a_start_from_other_items_has_all_of_delta():
    """Fifty of fifty right answers prove 5 % at delta .1, and not at a fifth of it, where it takes 77."""
    u, wrong = np.repeat([0.1, 0.9], [50, 50]), np.repeat([0, 1], [50, 50])
    assert controlled_threshold(u, wrong, [0.1, 0.9], risk=0.05, delta=0.1).threshold == -np.inf
    found = controlled_threshold(u, wrong, [0.1, 0.9], risk=0.05, delta=0.1, start=0.1)
    assert (found.threshold, found.answered) == (0.1, 50)
    assert found.risk_bound == pytest.approx(1 - 0.1 ** (1 / 50))
    assert controlled_threshold(u, wrong, [0.1, 0.9], start=0.9).threshold == -np.inf


def test_the_likely_start_has_the_smallest_expected_tail():
    u, wrong = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), np.array([0, 0, 0, 0, 1, 1])
    grid = [0.2, 0.4, 0.6]
    tails = [  # 60 items to come: 20, 40 and 60 answered, of which (w + 1/2) / (m + 1) wrong
        binomial_tail(round(20 * 0.5 / 3), 20, 0.3),
        binomial_tail(round(40 * 0.5 / 5), 40, 0.3),
        binomial_tail(round(60 * 2.5 / 7), 60, 0.3),
    ]
    assert likely_start(u, wrong, grid, num_items=60, risk=0.3) == grid[int(np.argmin(tails))] == 0.4
    assert likely_start([0.5], [1], [0.1, 0.2], num_items=10) == 0.1  # nothing is answered: all alike


def test_a_start_from_other_items_finds_more_thresholds_and_keeps_the_risk():
    rng = np.random.default_rng(2)
    grid, found, broken, several = np.arange(1, 101) / 100, 0, 0, 0
    for _ in range(150):
        u, other = rng.random(250), rng.random(120)
        wrong, seen = (
            (rng.random(len(v)) < np.maximum(0.3 * (v - 0.4), 0.01)).astype(int) for v in (u, other)
        )
        start = likely_start(other, seen, grid, num_items=250, risk=0.05)
        t = controlled_threshold(u, wrong, grid, risk=0.05, delta=0.1, start=start).threshold
        several += controlled_threshold(u, wrong, grid, risk=0.05, delta=0.1).threshold > 0
        found += t > 0
        # E[wrong | u <= t] with .01 up to u = .4333 and .3 (u - .4) beyond
        broken += t > 0 and (0.01 * 0.4333 + 0.15 * ((t - 0.4) ** 2 - 0.0333**2)) / t > 0.05
    assert found > several + 15 and broken / 150 <= 0.1 + 0.05


def test_false_claims_are_rarer_than_delta_by_enumeration():
    """Two thresholds with risks .2 and .3, both above .15: every outcome weighted by its exact probability."""
    first, second, risk, delta = 12, 8, 0.15, 0.2
    u = np.repeat([0.0, 1.0], [first, second])
    total = 0.0
    for a in range(first + 1):
        for b in range(second + 1):
            wrong = np.concatenate([np.arange(first) < a, np.arange(second) < b]).astype(int)
            found = controlled_threshold(u, wrong, [0.0, 1.0], risk=risk, delta=delta, num_starts=2)
            weight = (
                comb(first, a)
                * 0.2**a
                * 0.8 ** (first - a)
                * comb(second, b)
                * 0.45**b
                * 0.55 ** (second - b)
            )
            total += weight * (found.threshold > -np.inf)
    assert 0 < total <= delta


def test_true_risk_exceeds_the_limit_rarely():
    rng = np.random.default_rng(1)
    grid, broken = np.arange(1, 21) / 20, 0
    for _ in range(200):
        u = rng.random(300)
        found = controlled_threshold(u, (rng.random(300) < 0.4 * u).astype(int), grid, risk=0.1, delta=0.2)
        # P(wrong | u <= t) = .2 t, so the limit .1 is reached at t = .5.
        broken += found.threshold > 0.5 + 1e-9
    assert broken / 200 <= 0.2 + 0.06


def test_grid_of_quantiles():
    assert threshold_grid([3, 1, 2, 4], 4).tolist() == [1, 2, 3, 4]
    assert threshold_grid([3, 1, 2, 4], 2).tolist() == [2, 4]
    assert threshold_grid([1, 1, 1, 2], 4).tolist() == [1, 2]


def test_bad_input_is_named():
    with pytest.raises(DataError, match="wrong must be 0 or 1"):
        controlled_threshold([0.1], [0.5], [1.0])
    with pytest.raises(DataError, match=r"must lie in \(0, 1\), got 0 and 0\.1"):
        controlled_threshold([0.1], [0], [1.0], risk=0)
    with pytest.raises(DataError, match="one entry per item"):
        controlled_threshold([0.1, 0.2], [0], [1.0])
    with pytest.raises(DataError, match=r"error_rate must lie in \[0, 0\.05\)"):
        items_for_risk(0.05, 0.1, 0.05)
    with pytest.raises(DataError, match="wrong must be 0 or 1"):
        likely_start([0.1], [0.5], [1.0], num_items=3)
    with pytest.raises(DataError, match="num_thresholds must be at least 1"):
        threshold_grid([1.0], 0)
