"""McNemar by exact fractions, paired bootstrap against known differences, Holm by hand."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.intervals import bootstrap, resample_counts
from vlora.eval.metrics.paired_tests import bootstrap_p_value, holm, mcnemar, paired_bootstrap
from vlora.eval.metrics.ranking import Ranking
from vlora.eval.metrics.selective import Kept, aurc


def answers(both, only_a, only_b, neither):
    a = np.repeat([1, 1, 0, 0], [both, only_a, only_b, neither])
    return a, np.repeat([1, 0, 1, 0], [both, only_a, only_b, neither])


def test_mcnemar_by_hand():
    found = mcnemar(*answers(40, 2, 8, 10))
    tail = sum(comb(10, k) for k in range(3)) / 2**10
    assert (found.only_a, found.only_b) == (2, 8)
    assert found.p_value == pytest.approx(2 * tail)  # .109375
    assert found.mid_p == pytest.approx(2 * tail - comb(10, 2) / 2**10)
    assert mcnemar(*answers(5, 0, 5, 0)).p_value == pytest.approx(2 / 32)
    assert mcnemar(*answers(5, 3, 3, 1)).p_value == 1.0
    assert mcnemar(*answers(5, 0, 0, 1)).mid_p == 1.0


def test_mcnemar_is_exact_under_no_difference():
    """P(p <= .05) over all splits of n discordant items stays below .05, and the mid-p comes closer to it."""
    for n in (8, 15, 30):
        weights = np.array([comb(n, k) / 2**n for k in range(n + 1)])
        found = [mcnemar(*answers(0, k, n - k, 0)) for k in range(n + 1)]
        exact = weights[[f.p_value <= 0.05 for f in found]].sum()
        mid = weights[[f.mid_p <= 0.05 for f in found]].sum()
        assert exact <= 0.05 and exact <= mid <= 0.08


def test_bootstrap_p_value():
    assert bootstrap_p_value(np.arange(1.0, 100.0)) == pytest.approx(2 / 100)
    assert bootstrap_p_value([0.0] * 50) == 1.0
    assert bootstrap_p_value([-1.0, 1.0, np.nan]) == 1.0
    assert np.isnan(bootstrap_p_value([np.nan]))


def test_paired_bootstrap_of_a_ranked_metric():
    rng = np.random.default_rng(0)
    correct, counts = (rng.random(300) < 0.7).astype(float), resample_counts(300, 400)
    noise = rng.normal(size=300)
    good, bad = -correct + noise, -0.2 * correct + noise

    def replicates(u):
        return bootstrap(lambda weights: Kept.of(Ranking.of(u), correct, weights).aurc(), counts)

    found = paired_bootstrap(aurc(good, correct), aurc(bad, correct), replicates(good), replicates(bad), 300)
    assert found.difference.high < 0 and found.p_value == pytest.approx(2 / 401)
    same = paired_bootstrap(0.3, 0.3, replicates(good), replicates(good), 300)
    assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**31))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, seed):
    adjusted, size = holm(p_values), len(p_values)
    rejected = set()
    for step, item in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[item] * (size - step) > 0.05:
            break
        rejected.add(int(item))
    assert set(np.flatnonzero(adjusted <= 0.05).tolist()) == rejected
    assert (adjusted >= np.array(p_values)).all()
    order = np.random.default_rng(seed).permutation(size)
    assert holm(np.array(p_values)[order]) == pytest.approx(adjusted[order])


def test_bad_input_is_named():
    with pytest.raises(DataError, match="correct_b must be 0 or 1"):
        mcnemar([1, 0], [0.5, 1])
    with pytest.raises(DataError, match="one entry per item"):
        mcnemar([1, 0], [1])
    with pytest.raises(DataError, match="p_values must lie in"):
        holm([0.5, 1.5])
    with pytest.raises(DataError, match="NaN of 2"):
        holm([0.5, float("nan")])
    with pytest.raises(DataError, match="one entry per item"):
        paired_bootstrap(0.0, 0.0, [1.0], [1.0, 2.0], 3)
