"""One number that calibrates a confidence: found where it was put, convex, ranking untouched."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.generation.confidence import BOUNDS, fit_power, sharpen


def test_the_power_is_recovered():
    rng = np.random.default_rng(0)
    truth = rng.random(40_000)
    correct = (rng.random(40_000) < truth).astype(float)
    for power in (0.3, 1.0, 4.0):
        assert fit_power(truth ** (1 / power), correct) == pytest.approx(power, rel=0.05)


@given(st.integers(0, 500))
def test_no_other_power_is_better(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(30), (rng.random(30) < 0.5).astype(float)

    def loss(power):
        q = np.clip(sharpen(confidence, power), 1e-12, 1 - 1e-12)
        return -(correct * np.log(q) + (1 - correct) * np.log(1 - q)).mean()

    best = fit_power(confidence, correct)
    if BOUNDS[0] < best < BOUNDS[1]:
        assert loss(best) <= min(loss(best * 1.05), loss(best / 1.05)) + 1e-12


def test_bounds_and_bad_input():
    assert fit_power([0.5, 0.9], [1, 1]) == BOUNDS[0]  # always right: as sure as can be
    assert fit_power([0.5, 0.9], [0, 0]) == BOUNDS[1]
    assert np.isfinite(fit_power([0.0, 1.0, 0.5], [1, 0, 1]))
    with pytest.raises(DataError, match=r"must lie in \[0, 1\]"):
        fit_power([-1.0], [1])
    with pytest.raises(DataError, match="must be > 0"):
        sharpen([0.5], 0)
