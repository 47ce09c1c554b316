"""Parts of the Brier score: sums that must hold exactly, the isotonic fit against its definition, known forecasts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.decomposition import binned_decomposition, isotonic_decomposition, isotonic_fit


def max_min_fit(p, y):
    """Isotonic regression by its max-min formula, max over a <= i of min over b >= i of mean y[a..b]."""
    values = np.unique(p)
    hits = np.array([y[p == v].sum() for v in values])
    items = np.array([(p == v).sum() for v in values])

    def mean(a, b):
        return hits[a : b + 1].sum() / items[a : b + 1].sum()

    size = len(values)
    level = [max(min(mean(a, b) for b in range(i, size)) for a in range(i + 1)) for i in range(size)]
    return np.array([level[np.searchsorted(values, v)] for v in p])


def test_by_hand():
    assert isotonic_fit([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1]) == pytest.approx([0, 0.5, 0.5, 1])
    parts = isotonic_decomposition([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
    assert parts.score == pytest.approx((0.01 + 0.64 + 0.09 + 0.36) / 4)
    assert parts.uncertainty == pytest.approx(0.25)
    assert parts.resolution == pytest.approx(0.25 - 0.125)
    assert parts.reliability == pytest.approx(parts.score - 0.125)


def test_murphy_table_with_constant_forecasts_in_bins():
    p, y = np.repeat([0.1, 0.7], [10, 20]), np.repeat([1, 0, 1, 0], [2, 8, 11, 9])
    parts = binned_decomposition(p, y, 10)
    assert parts.reliability == pytest.approx((10 * 0.1**2 + 20 * (0.7 - 0.55) ** 2) / 30)
    assert parts.resolution == pytest.approx((10 * (0.2 - 13 / 30) ** 2 + 20 * (0.55 - 13 / 30) ** 2) / 30)
    assert parts.uncertainty == pytest.approx(13 / 30 * 17 / 30)


def test_base_rate_and_oracle_forecasts():
    y = np.array([0, 0, 1, 0, 1])
    base = isotonic_decomposition(np.full(5, 0.4), y)
    assert (base.reliability, base.resolution) == pytest.approx((0, 0)) and base.score == pytest.approx(0.24)
    best = isotonic_decomposition(y.astype(float), y)
    assert (best.score, best.reliability) == (0, 0) and best.resolution == pytest.approx(0.24)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.integers(0, 2**31), st.booleans())
def test_properties(size, seed, coarse):
    rng = np.random.default_rng(seed)
    p = rng.integers(5, size=size) / 4 if coarse else rng.random(size)
    y, order = rng.integers(2, size=size).astype(float), rng.permutation(size)
    assert isotonic_fit(p, y) == pytest.approx(max_min_fit(p, y))
    assert all(a <= b + 1e-12 for a, b in pairwise(isotonic_fit(p, y)[np.argsort(p)]))
    parts = [
        isotonic_decomposition(p, y),
        binned_decomposition(p, y, 7),
        binned_decomposition(p, y, 7, "equal_mass"),
    ]
    for part in parts:
        assert part.score == pytest.approx(part.reliability - part.resolution + part.uncertainty, abs=1e-12)
        assert part.score == pytest.approx(np.mean((p - y) ** 2)) and part.reliability >= 0
    assert 0 <= parts[0].resolution <= parts[0].uncertainty + 1e-12
    # A strictly increasing map of the forecasts is recalibrated away: it changes the reliability alone.
    assert isotonic_decomposition(p**3, y).resolution == pytest.approx(parts[0].resolution)
    assert isotonic_decomposition(p[order], y[order]) == parts[0] or isotonic_decomposition(
        p[order], y[order]
    ).reliability == pytest.approx(parts[0].reliability, abs=1e-12)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="probability must lie in"):
        isotonic_decomposition([1.5], [1])
    with pytest.raises(DataError, match="one entry per item"):
        binned_decomposition([0.5], [1, 0])
    with pytest.raises(DataError, match="NaN of 1"):
        isotonic_fit([float("nan")], [1])
