"""Conformal sets: the level for small n, exact marginal coverage by leaving out every item, APS by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.conformal import (
    aps_scores,
    conformal_level,
    conformal_threshold,
    coverage_band,
    lac_scores,
    prediction_sets,
    set_report,
)


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def held_out_coverage(true_scores, alpha):
    """Coverage over all ways to pick the test item out of n + 1 exchangeable ones."""
    size = len(true_scores)
    covered = [true_scores[i] <= conformal_threshold(np.delete(true_scores, i), alpha) for i in range(size)]
    return float(np.mean(covered))


def test_anchor():
    probs = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.35, 0.3])
    assert conformal_level(9, 0.2) == 8
    assert conformal_threshold(1 - probs, 0.2) == pytest.approx(0.65)


def test_levels_for_small_n():
    assert [conformal_level(n, 0.1) for n in (5, 8, 9, 10, 19)] == [6, 9, 9, 10, 18]
    assert conformal_threshold([0.1] * 8, 0.1) == np.inf  # 9 > 8: only the full set covers
    assert conformal_threshold([0.1] * 9, 0.1) == 0.1
    assert prediction_sets(lac_scores(log([[0.5, 0.3, 0.2]])), np.inf).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 25), st.sampled_from([0.05, 0.1, 0.2, 0.5]), st.integers(0, 2**31), st.booleans())
def test_marginal_coverage_is_exact_without_ties_and_at_least_that_with_them(n, alpha, seed, coarse):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(4), n + 1)
    if coarse:
        probs = np.round(probs * 3)
        probs = np.where(probs.sum(1, keepdims=True) > 0, probs, 1)
        probs /= probs.sum(1, keepdims=True)
    rows, label = np.arange(n + 1), rng.integers(4, size=n + 1)
    exact = min(conformal_level(n, alpha), n + 1) / (n + 1)
    assert exact >= 1 - alpha
    for scores in (lac_scores(log(probs)), aps_scores(log(probs)), aps_scores(log(probs), rng.random(n + 1))):
        found, true = held_out_coverage(scores[rows, label], alpha), scores[rows, label]
        if len(np.unique(true)) == n + 1:
            assert found == pytest.approx(exact)
        else:
            assert found >= exact - 1e-12


def test_aps_scores_by_hand_with_ties_and_padding():
    scores = aps_scores(log([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.5, 0.0]]))
    assert scores == pytest.approx(np.array([[0.5, 0.8, 1.0, np.inf], [1.0, 1.0, 0.5, np.inf]]))
    random = aps_scores(log([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), [0.0, 0.5])
    assert random == pytest.approx(np.array([[0, 0.5, 0.8], [0.25, 0.65, 0.9]]))


def test_sets_do_not_depend_on_the_order_of_choices():
    rng = np.random.default_rng(0)
    probs, order = rng.dirichlet(np.ones(6), 50), rng.permutation(6)
    for scores in (lac_scores, aps_scores):
        assert (scores(log(probs))[:, order] == scores(log(probs[:, order]))).all()


def test_coverage_over_calibration_sets_stays_in_its_beta_band():
    rng = np.random.default_rng(1)
    n, alpha = 40, 0.1
    low, high = coverage_band(n, alpha)
    # Scores uniform on [0, 1]: a threshold q covers exactly the share q of new items.
    coverage = np.array([conformal_threshold(rng.random(n), alpha) for _ in range(1000)])
    assert np.mean((low <= coverage) & (coverage <= high)) == pytest.approx(0.95, abs=0.025)
    assert coverage.mean() == pytest.approx(conformal_level(n, alpha) / (n + 1), abs=0.005)
    assert coverage_band(5, 0.1) == (1.0, 1.0)


def test_report():
    log_probs = log([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]])
    sets = prediction_sets(lac_scores(log_probs), 0.65)
    report = set_report(sets, log_probs, [0, 1, 1, 0])
    assert report.coverage == 0.5 and report.mean_size == 1.0 and report.empty_share == 0.25
    assert report.coverage_by_size == {0: (0.0, 1), 1: (0.5, 2), 2: (1.0, 1)}
    assert report.uncertainty_aware_accuracy == pytest.approx(0.5 * 3**0.5 / 1.0)


def test_full_sets_do_not_count_padding():
    log_probs = log([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    report = set_report(prediction_sets(lac_scores(log_probs), np.inf), log_probs, [0, 1])
    assert report.coverage == 1.0 and report.mean_size == 2.5


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"got 0 and 0\.1"):
        conformal_level(0, 0.1)
    with pytest.raises(DataError, match=r"alpha in \(0, 1\), got 3 and 1\.5"):
        conformal_threshold([0.1, 0.2, 0.3], 1.5)
    with pytest.raises(DataError, match="must sum to 1 over the choices"):
        lac_scores(log([[0.5, 0.4]]))
    with pytest.raises(DataError, match="uniform must lie in"):
        aps_scores(log([[0.5, 0.5]]), [2.0])
    with pytest.raises(DataError, match="one row per item and one column per choice"):
        set_report(np.ones((1, 3), bool), log([[0.5, 0.5]]), [0])
