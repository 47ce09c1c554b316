"""Bootstrap intervals: counts, coverage, pairing."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.intervals import (
    bootstrap,
    bootstrap_mean,
    paired_difference,
    percentile_interval,
    resample_counts,
)


def test_counts_are_resamples_with_replacement():
    counts = resample_counts(50, 2000, seed=3)
    assert counts.shape == (2000, 50) and (counts.sum(1) == 50).all()
    assert counts.mean() == 1.0
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)  # multinomial
    assert (counts == resample_counts(50, 2000, seed=3)).all()
    assert (counts != resample_counts(50, 2000, seed=4)).any()
    with pytest.raises(DataError, match="at least 1 item"):
        resample_counts(0)


def test_interval_of_a_mean_has_the_normal_width_and_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = rng.normal(size=60)
        found = bootstrap_mean(values, resample_counts(60, 400, seed=trial))
        covered += found.low <= 0 <= found.high
        assert found.value == pytest.approx(values.mean()) and found.n == 60
    assert 0.88 < covered / 200 < 0.99
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 60**0.5, rel=0.15)


def test_blocks_give_what_one_product_gives():
    values = np.random.default_rng(1).normal(size=700)
    counts = resample_counts(700, 300)
    replicates = bootstrap(lambda weights: weights @ values, counts)
    assert replicates == pytest.approx(counts.astype(float) @ values)


def test_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=300) * 5
    a, b = hard, hard + 0.2 + 0.5 * rng.normal(size=300)
    counts = resample_counts(300)
    difference = paired_difference(a, b, counts)
    assert difference.value == pytest.approx((a - b).mean()) and difference.high < 0
    apart = bootstrap_mean(a, counts), bootstrap_mean(b, counts)
    assert apart[0].high > apart[1].low
    same = paired_difference(a, a, counts)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="one entry per item"):
        paired_difference(a, b[:-1], counts)


def test_undefined_replicates_are_left_out_until_they_are_half():
    replicates = np.arange(101.0)
    replicates[:40] = np.nan
    assert percentile_interval(70.0, replicates, 5).low == pytest.approx(41.5)
    replicates[:60] = np.nan
    found = percentile_interval(70.0, replicates, 5)
    assert found.value == 70.0 and np.isnan(found.low) and np.isnan(found.high)
