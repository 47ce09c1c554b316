"""Smooth calibration error: its integral from the definition, its fixed point, and its floor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration, calibration_gap
from vlora.eval.metrics.smooth_calibration import (
    smooth_ece,
    smooth_ece_at,
    smooth_ece_floor,
    smooth_ece_of_clusters,
    smooth_ece_resampled,
)


def literal_integral(f, y, sigma, points=4001, images=6):
    """The definition: Gaussian kernels with their mirror images in 0 and 1, integrated by the trapezoid rule."""
    t = np.linspace(0, 1, points)
    residual = np.zeros(points)
    for k in range(-images, images + 1):
        for centre in (f + 2 * k, -f + 2 * k):
            density = np.exp(-((t[:, None] - centre) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))
            residual += density @ (y - f) / len(f)
    return np.trapezoid(np.abs(residual), t)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.4])
def test_integral_is_that_of_mirrored_gaussians(sigma):
    rng = np.random.default_rng(0)
    f = np.append(rng.random(60), [0.0, 1.0, 1.0])
    y = (rng.random(63) < f**1.5).astype(float)
    assert smooth_ece_at(f, y, sigma) == pytest.approx(literal_integral(f, y, sigma), abs=2e-6)


def test_fixed_point_of_the_definition():
    rng = np.random.default_rng(1)
    f = rng.random(80)
    y = (rng.random(80) < 0.3 + 0.4 * f).astype(float)
    found = smooth_ece(f, y)
    assert literal_integral(f, y, found) == pytest.approx(found, abs=1e-5)


def test_one_sign_of_the_residual_gives_the_gap_itself():
    assert smooth_ece([0.95, 1.0], [1, 0]) == pytest.approx(0.475, abs=1e-6)
    assert smooth_ece([0.7] * 10, [1] * 5 + [0] * 5) == pytest.approx(0.2, abs=1e-6)
    assert smooth_ece([0.5, 0.5], [0, 1]) == pytest.approx(0.0, abs=1e-8)


def test_opposite_errors_cancel_only_where_they_are_close():
    apart, close = [0.1] * 50 + [0.9] * 50, [0.49] * 50 + [0.51] * 50
    wrong = [1] * 25 + [0] * 25 + [1] * 25 + [0] * 25  # right half of the time at each of the two
    assert smooth_ece(apart, wrong) == pytest.approx(calibration(apart, wrong).ece, rel=0.4)
    assert smooth_ece(close, wrong) < 0.01 + 1e-9


def test_clusters_are_resampled_whole():
    """Every resample of clusters is the error of all their values, written out as often as they were drawn."""
    rng = np.random.default_rng(4)
    cluster = np.repeat([0, 1, 2], [40, 5, 15])
    f = np.append(rng.random(58), [0.0, 1.0])
    y = (rng.random(60) < f**2).astype(float)
    weights = np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])
    expected = [smooth_ece(np.repeat(f, n), np.repeat(y, n)) for n in weights[:, cluster].astype(int)]
    assert smooth_ece_of_clusters(f, y, cluster)(weights) == pytest.approx(expected, abs=2e-4)
    each = smooth_ece_of_clusters(f, y, np.arange(60))(weights[:, cluster])
    assert each == pytest.approx(smooth_ece_resampled(f, y, weights[:, cluster]), abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_properties(size, seed):
    rng = np.random.default_rng(seed)
    f, y, order = rng.random(size), rng.integers(2, size=size).astype(float), rng.permutation(size)
    found = smooth_ece(f, y)
    assert abs(calibration_gap(f, y)) - 1e-6 <= found <= np.abs(f - y).mean() + 1e-6
    assert smooth_ece(f[order], y[order]) == pytest.approx(found, abs=1e-9)
    assert smooth_ece(1 - f, 1 - y) == pytest.approx(found, abs=1e-6)  # relabelling the event
    assert smooth_ece_at(f, y, 0.2) <= smooth_ece_at(f, y, 0.05) + 1e-9


def test_resamples_equal_laid_out_resamples():
    rng = np.random.default_rng(2)
    f, y = rng.random(90), rng.integers(2, size=90).astype(float)
    drawn = rng.integers(90, size=(3, 90))
    weights = np.stack([np.bincount(row, minlength=90) for row in drawn]).astype(float)
    found = smooth_ece_resampled(f, y, weights)
    assert found == pytest.approx([smooth_ece(f[row], y[row]) for row in drawn], rel=1e-3)


def test_floor_is_what_calibrated_answers_show():
    f = np.random.default_rng(3).uniform(0.25, 1, 200)
    floor = smooth_ece_floor(f, num_simulations=200)
    rng = np.random.default_rng(4)
    plain = [smooth_ece(f, rng.random(200) < f) for _ in range(100)]
    assert floor.mean == pytest.approx(np.mean(plain), rel=0.12)
    assert floor.mean < floor.high < 0.12
    assert floor == smooth_ece_floor(f, num_simulations=200)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="one entry per item"):
        smooth_ece([0.5, 0.6], [1])
    with pytest.raises(DataError, match="must lie in"):
        smooth_ece([1.2], [1])
    with pytest.raises(DataError, match="non-empty"):
        smooth_ece([], [])
    with pytest.raises(DataError, match="bandwidth must be > 0, got 0"):
        smooth_ece_at([0.5], [1], 0)
