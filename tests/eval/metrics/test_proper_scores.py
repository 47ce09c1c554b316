"""Brier, NLL, accuracy with ties, and divergence to a known distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.proper_scores import brier_score, correctness, kl_to_truth, negative_log_likelihood


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def test_torch_uncertainty_brier_anchors():
    assert brier_score(log([[0.8, 0.2], [0.3, 0.7]]), [0, 1]).mean() == pytest.approx(0.13)
    assert brier_score(log([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]), [0, 2]).mean() == pytest.approx(0.52)
    assert brier_score(log([[0.0, 1.0]]), [0]) == pytest.approx([2.0])


def test_padding_with_impossible_choices_changes_nothing():
    rows = log([[0.6, 0.4], [0.2, 0.8]])
    padded = np.pad(rows, [(0, 0), (0, 3)], constant_values=-np.inf)
    assert brier_score(padded, [0, 0]) == pytest.approx(brier_score(rows, [0, 0]))
    assert negative_log_likelihood(padded, [0, 0]).mean == negative_log_likelihood(rows, [0, 0]).mean


def test_nll_is_never_clipped():
    score = negative_log_likelihood([[-800.0, 0.0], [0.0, -np.inf], [0.0, -50.0]], [0, 1, 0])
    assert score.per_item.tolist() == [800.0, np.inf, 0.0]
    assert score.mean == np.inf and score.num_infinite == 1
    assert score.finite_mean == pytest.approx(400.0)


def test_ties_share_the_point():
    rows = log([[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    assert correctness(rows, [1, 2, 0, 1]) == pytest.approx([0.5, 1 / 3, 1, 0])
    assert correctness(rows, [2, 0, 0, 2]) == pytest.approx([0, 1 / 3, 1, 0])


def test_kl_by_hand():
    assert kl_to_truth([[0.5, 0.5]], log([[0.9, 0.1]])) == pytest.approx(
        [0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5)]
    )
    assert kl_to_truth([[1.0, 0.0]], log([[1.0, 0.0]])) == pytest.approx([0.0])
    assert kl_to_truth([[0.5, 0.5]], log([[1.0, 0.0]])).tolist() == [np.inf]
    with pytest.raises(DataError, match="rows that sum to 1"):
        kl_to_truth([[0.5, 0.6]], log([[0.5, 0.5]]))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 2**31))
def test_properties(items, choices, seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(choices), items)
    label = rng.integers(choices, size=items)
    score = brier_score(np.log(probs), label)
    assert (score >= 0).all() and (score <= 2).all()
    order = rng.permutation(choices)
    moved = np.argsort(order)[label]
    assert brier_score(np.log(probs[:, order]), moved) == pytest.approx(score)
    assert correctness(np.log(probs[:, order]), moved) == pytest.approx(correctness(np.log(probs), label))
    truth = rng.dirichlet(np.ones(choices), items)
    assert (kl_to_truth(truth, np.log(probs)) >= 0).all()
    # Properness: no other report has a smaller expected NLL than the truth itself.
    own = -(truth * np.log(truth)).sum(1)
    assert (-(truth * np.log(probs)).sum(1) >= own - 1e-12).all()
    assert kl_to_truth(truth, np.log(probs)) == pytest.approx(-(truth * np.log(probs)).sum(1) - own, abs=1e-9)


@pytest.mark.parametrize(
    ("label", "message"),
    [([2], "must lie in 0…1"), ([-1], "must lie in 0…1"), ([0, 1], "one entry"), ([0.5], "integers")],
)
def test_bad_labels_are_named(label, message):
    with pytest.raises(DataError, match=message):
        negative_log_likelihood(log([[0.5, 0.5]]), label)
