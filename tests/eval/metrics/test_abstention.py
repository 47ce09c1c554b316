"""Answers that may be declined: SimpleQA's counts and the penalised score."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.abstention import abstention_scores, penalised_score, penalties


def test_simpleqa_counts():
    scores = abstention_scores([1, 1, 1, 0, 0], [1, 1, 0, 1, 0])  # what was declined cannot be right
    assert (scores.correct, scores.incorrect, scores.not_attempted) == pytest.approx((0.4, 0.2, 0.4))
    assert scores.accuracy_given_attempted == pytest.approx(2 / 3)
    assert scores.f_score == pytest.approx(2 * (2 / 3) * 0.4 / (2 / 3 + 0.4))


def test_nothing_attempted_and_nothing_right():
    nothing = abstention_scores([0, 0], [1, 1])
    assert np.isnan(nothing.accuracy_given_attempted) and nothing.f_score == 0 and nothing.not_attempted == 1
    assert abstention_scores([1, 1], [0, 0]).f_score == 0


def test_the_penalty_breaks_even_at_the_threshold():
    """Answers that are right with probability t earn nothing on average; better ones earn, worse ones lose."""
    for threshold, right in ((0.5, 1), (0.75, 3), (0.9, 9)):
        total = 2 if threshold == 0.5 else right + 1
        correct = np.arange(total) < right
        assert penalties(np.ones(total), correct, threshold).mean() == pytest.approx(0)
    assert penalties([1, 1, 0], [1, 0, 0], 0.8).tolist() == pytest.approx([1, -4, 0])


def test_answering_above_the_threshold_is_best_for_a_calibrated_model():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    correct = (rng.random(20_000) < confidence).astype(float)
    own = penalised_score(confidence, correct, 0.7)
    for shift in (-0.15, 0.15):
        moved = penalties((confidence >= 0.7 + shift).astype(float), correct, 0.7).mean()
        assert own > moved
    assert penalised_score(confidence, correct, 0.7, attempted=np.zeros(20_000)) == 0


def test_bad_input():
    with pytest.raises(DataError, match=r"lie in \[0, 1\), got 1"):
        penalties([1], [1], 1)
    with pytest.raises(DataError, match="must be 0 or 1"):
        abstention_scores([0.5], [1])
    with pytest.raises(DataError, match="must lie in"):
        penalised_score([1.5], [1], 0.5)
