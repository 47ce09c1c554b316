"""AUROC, FPR95 and average precision: exact with ties, undefined without both classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.eval.metrics.ranking import Ranking, Separation, auroc, average_precision, fpr_at_tpr

U = [0.1, 0.4, 0.35, 0.8, 0.2, 0.9, 0.5, 0.3]
QUALITY = [1, 0, 1, 0, 1, 1, 0, 1]


def pairwise_auroc(score, positive):
    """The definition, pair by pair."""
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive == 1] for b in score[positive == 0]]
    return np.mean(pairs)


def plain_fpr(score, positive, tpr=0.95):
    """The definition, threshold by threshold from above."""
    for threshold in np.unique(score)[::-1]:
        said = score >= threshold
        if said[positive == 1].mean() >= tpr - 1e-12:
            return said[positive == 0].mean()
    return 1.0


def test_lm_polygraph_anchor():
    assert auroc(U, 1 - np.array(QUALITY)) == pytest.approx(0.8)


def test_all_ties_are_chance_and_one_class_is_undefined():
    assert auroc([1.0, 1.0, 1.0], [0, 1, 1]) == 0.5
    assert np.isnan(auroc([1.0, 2.0], [1, 1])) and np.isnan(auroc([1.0, 2.0], [0, 0]))
    assert np.isnan(fpr_at_tpr([1.0, 2.0], [1, 1])) and np.isnan(fpr_at_tpr([1.0, 2.0], [0, 0]))
    assert np.isnan(average_precision([1.0, 2.0], [0, 0]))


def test_fpr_by_hand():
    score = np.arange(40.0)
    positive = (score >= 20).astype(float)
    assert fpr_at_tpr(score, positive) == 0.0
    positive[[19, 20]] = positive[[20, 19]]  # 19 of 20 positives still lie above every negative
    assert fpr_at_tpr(score, positive) == 0.0
    assert fpr_at_tpr(score, positive, tpr=1.0) == pytest.approx(1 / 20)


def test_average_precision_by_hand():
    assert average_precision([4, 3, 2, 1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1, 1, 1, 1], [1, 0, 0, 0]) == pytest.approx(0.25)  # one step: the prevalence


def test_fractional_class_counts_in_parts():
    whole = auroc([3, 2, 2, 1], [1, 1, 0, 0])
    assert auroc([3, 2, 1], [1, 0.5, 0]) == pytest.approx((1 * 1.5 + 0.5 * 1 + 0.5 * 0.25) / (1.5 * 1.5))
    assert whole == pytest.approx(3.5 / 4)


scored = st.tuples(st.integers(2, 30), st.integers(0, 2**31), st.booleans())


@settings(deadline=None, max_examples=80)
@given(scored)
def test_definitions_and_symmetries(case):
    size, seed, coarse = case
    rng = np.random.default_rng(seed)
    score = rng.integers(4, size=size).astype(float) if coarse else rng.normal(size=size)
    positive = np.concatenate([[0, 1], rng.integers(2, size=size - 2)])
    order = rng.permutation(size)
    assert auroc(score, positive) == pytest.approx(pairwise_auroc(score, positive))
    assert auroc(score, positive) == pytest.approx(1 - auroc(-score, positive))
    assert auroc(score, positive) == pytest.approx(1 - auroc(score, 1 - positive))
    assert auroc(score[order], positive[order]) == pytest.approx(auroc(score, positive))
    assert auroc(np.exp(score), positive) == pytest.approx(auroc(score, positive))
    assert fpr_at_tpr(score, positive) == pytest.approx(plain_fpr(score, positive))


@settings(deadline=None, max_examples=60)
@given(scored)
def test_resamples_with_merged_runs_equal_laid_out_resamples(case):
    size, seed, coarse = case
    rng = np.random.default_rng(seed)
    score = rng.integers(4, size=size).astype(float) if coarse else rng.normal(size=size)
    positive = rng.integers(2, size=size).astype(float)
    drawn = rng.integers(size, size=(4, size))
    weights = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(float)
    found = Separation.of(Ranking.of(score).merge_runs(positive), positive, weights)
    for row, items in enumerate(drawn):
        assert found.auroc()[row] == pytest.approx(auroc(score[items], positive[items]), nan_ok=True)
        assert found.fpr_at_tpr()[row] == pytest.approx(
            fpr_at_tpr(score[items], positive[items]), nan_ok=True
        )
