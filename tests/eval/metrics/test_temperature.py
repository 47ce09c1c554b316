"""Temperature scaling: the convex minimum, its bounds and its interval."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.intervals import resample_counts
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.temperature import (
    TEMPERATURE_BOUNDS,
    fit_temperature,
    temper,
    temperature_from_grid,
    temperature_interval,
)


def synthetic(size, scale, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, 4)) * 1.5
    cumulative = np.cumsum(np.exp(temper(logits - 10, 1)), axis=1)
    label = (rng.random(size)[:, None] > cumulative).sum(1).clip(max=3)
    return temper(scale * logits - 100, 1), label


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_recovers_the_temperature_that_made_the_data(scale):
    log_probs, label = synthetic(20000, scale, 0)
    assert fit_temperature(log_probs, label).temperature == pytest.approx(scale, rel=0.05)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(5, 60), st.floats(0.2, 5))
def test_no_other_temperature_is_better(seed, size, scale):
    log_probs, label = synthetic(size, scale, seed)
    fit = fit_temperature(log_probs, label)
    assert fit.nll == pytest.approx(negative_log_likelihood(temper(log_probs, fit.temperature), label).mean)
    for temperature in np.geomspace(*TEMPERATURE_BOUNDS, 60):
        assert fit.nll <= negative_log_likelihood(temper(log_probs, temperature), label).mean + 1e-10


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_grid_gives_the_same_minimum(scale):
    log_probs, label = synthetic(2000, scale, 1)
    grid = np.geomspace(0.25, 4, 25)
    nll = [negative_log_likelihood(temper(log_probs, t), label).mean for t in grid]
    exact, found = fit_temperature(log_probs, label), temperature_from_grid(grid, nll)
    assert found.temperature == pytest.approx(exact.temperature, rel=5e-3) and not found.at_bound
    assert found.nll == pytest.approx(exact.nll, abs=2e-4)
    end = temperature_from_grid(grid[:4], nll[:4])  # up to .35
    assert (end.temperature, end.nll, end.at_bound) == (grid[3], nll[3], True)
    assert temperature_from_grid([1, 2, 3], [5.0, 5.0, 5.0]).at_bound


def test_a_grid_that_is_none_is_refused():
    for grid, nll in (([1, 2], [0.1, 0.2]), ([1, 2, 3], [0.1, 0.2]), ([0, 1, 2], [0.1, 0.2, 0.3])):
        with pytest.raises(DataError, match="NLL at three or more temperatures"):
            temperature_from_grid(grid, nll)
    for grid, nll in (([1, 3, 2], [0.1, 0.2, 0.3]), ([1, 2, 3], [0.1, np.nan, 0.3])):
        with pytest.raises(DataError, match="must rise and their NLL be finite"):
            temperature_from_grid(grid, nll)


def test_bounds_are_reported():
    sure = np.log([[0.9, 0.1], [0.8, 0.2]])
    right, wrong = fit_temperature(sure, [0, 0]), fit_temperature(sure, [1, 1])
    assert right.at_bound and right.temperature == pytest.approx(TEMPERATURE_BOUNDS[0])
    assert wrong.at_bound and wrong.temperature == pytest.approx(TEMPERATURE_BOUNDS[1])


def test_tempering_keeps_order_and_padding():
    log_probs = np.pad(synthetic(20, 2.0, 1)[0], [(0, 0), (0, 2)], constant_values=-np.inf)
    flat = temper(log_probs, 3.0)
    assert np.exp(flat).sum(1) == pytest.approx(np.ones(20))
    assert (flat.argmax(1) == log_probs.argmax(1)).all() and np.isneginf(flat[:, 4:]).all()
    assert temper(log_probs, 1.0)[:, :4] == pytest.approx(log_probs[:, :4], abs=1e-12)
    with pytest.raises(DataError, match="temperature must be > 0, got 0"):
        temper(log_probs, 0)


def test_interval_equals_refits_on_the_resamples():
    log_probs, label = synthetic(80, 2.0, 5)
    counts = resample_counts(80, 100)
    found = temperature_interval(log_probs, label, counts)
    refits = []
    for row in counts:
        items = np.repeat(np.arange(80), row)
        refits.append(fit_temperature(log_probs[items], label[items]).temperature)
    assert found.value == fit_temperature(log_probs, label).temperature and found.n == 80
    assert [found.low, found.high] == pytest.approx(np.quantile(refits, [0.025, 0.975]), rel=2e-3)


def test_impossible_labels_are_left_out_and_counted():
    rows = np.array([[0.0, -np.inf], [-0.5, np.log1p(-np.exp(-0.5))], [-0.2, np.log1p(-np.exp(-0.2))]])
    fit, without = fit_temperature(rows, [1, 0, 1]), fit_temperature(rows[1:], [0, 1])
    assert fit.nll < np.inf and (fit.num_infinite, without.num_infinite) == (1, 0)
    assert (fit.temperature, fit.nll, fit.at_bound) == (without.temperature, without.nll, without.at_bound)
    none = fit_temperature(rows[:1], [1])
    assert (none.temperature, none.nll, none.at_bound, none.num_infinite) == (1.0, np.inf, True, 1)
    found = temperature_interval(rows[:1], [1], resample_counts(1, 10))
    assert (found.value, found.n) == (1.0, 1) and np.isnan([found.low, found.high]).all()
