"""One temperature for every draw before they are averaged: closed forms, and the difference to that of the mixture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.draw_temperature import (
    draw_temperature_interval,
    draw_temperatures,
    fit_draw_temperature,
    temper_draws,
)
from vlora.eval.metrics.intervals import resample_counts
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.temperature import TEMPERATURE_BOUNDS, fit_temperature, temper
from vlora.eval.metrics.uncertainty import mixture_log_probs


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def drawn(seed, draws, size, choices=3, spread=1.0, scale=2.0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(size, choices))
    label = np.array([rng.choice(choices, p=np.exp(row)) for row in log_softmax(truth)])
    return log_softmax(scale * truth + spread * rng.normal(size=(draws, size, choices))), label


def nll(samples, label, temperature):
    mixture = mixture_log_probs(np.stack([temper(one, temperature) for one in samples]))
    return negative_log_likelihood(mixture, label).mean


def test_a_sure_and_an_undecided_draw_by_hand():
    """Odds a against 1 and 1 against 1: (s(a/T) + 1/2) / 2 = .7 asks s(a/T) = .9, so T = a / log 9."""
    a = 2 * np.log(9)
    samples = np.stack([np.tile(log_softmax(np.array([z, 0.0])), (10, 1)) for z in (a, 0.0)])
    label = np.array([0] * 7 + [1] * 3)
    found = fit_draw_temperature(samples, label)
    assert found.temperature == pytest.approx(2.0, rel=1e-6) and not found.at_bound
    assert found.nll == pytest.approx(-0.7 * np.log(0.7) - 0.3 * np.log(0.3))
    # The mixture has odds (81/82 + 1/2) against the rest, whose logarithm its own temperature divides.
    share = (81 / 82 + 0.5) / 2
    wanted = np.log(share / (1 - share)) / np.log(0.7 / 0.3)
    assert fit_temperature(mixture_log_probs(samples), label).temperature == pytest.approx(wanted)
    assert wanted == pytest.approx(1.2586, abs=1e-4)


def test_opposite_sure_draws_stay_a_mixture_of_both():
    """No temperature of such draws moves their average off 1/2; the mixture is flat already."""
    samples = log_softmax(np.array([[[4.0, 0.0]] * 4, [[0.0, 4.0]] * 4]))
    for temperature in (0.1, 1.0, 7.0):
        assert mixture_log_probs(temper_draws(samples, temperature)) == pytest.approx(np.log(0.5))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(5, 40), st.floats(0.0, 3.0), st.floats(0.2, 5))
def test_no_other_temperature_is_better(seed, draws, size, spread, scale):
    samples, label = drawn(seed, draws, size, spread=spread, scale=scale)
    found = fit_draw_temperature(samples, label)
    assert found.nll == pytest.approx(nll(samples, label, found.temperature))
    assert found.nll <= nll(samples, label, 1.0) + 1e-12
    for temperature in np.geomspace(*TEMPERATURE_BOUNDS, 61):
        assert found.nll <= nll(samples, label, temperature) + 1e-10
    order = np.random.default_rng(seed).permutation(draws)
    assert fit_draw_temperature(samples[order], label).temperature == pytest.approx(
        found.temperature, rel=1e-4
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(20, 60))
def test_equal_draws_have_the_temperature_of_one(seed, draws, size):
    samples, label = drawn(seed, 1, size)
    one, every = (
        fit_temperature(samples[0], label),
        fit_draw_temperature(np.repeat(samples, draws, axis=0), label),
    )
    assert every.at_bound == one.at_bound and every.nll == pytest.approx(one.nll, abs=1e-9)
    assert one.at_bound or every.temperature == pytest.approx(one.temperature, rel=1e-4)


def test_the_interval_is_that_of_refits():
    samples, label = drawn(3, 4, 80)
    counts = resample_counts(80, 40, 0)
    found = draw_temperature_interval(samples, label, counts)
    picked = [np.repeat(np.arange(80), row) for row in counts]
    refits = [fit_draw_temperature(samples[:, rows], label[rows]).temperature for rows in picked]
    assert found.value == fit_draw_temperature(samples, label).temperature and found.n == 80
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(refits, [0.025, 0.975])), rel=5e-3)


def test_resampled_draws_are_those_of_refits():
    samples, label = drawn(4, 6, 60, spread=2.0)
    weights = draw_weights(6, 20)
    picked = [np.repeat(np.arange(6), np.round(row * 6).astype(int)) for row in weights]
    refits = [fit_draw_temperature(samples[rows], label).temperature for rows in picked]
    assert draw_temperatures(samples, label, weights) == pytest.approx(np.array(refits), rel=5e-3)


def test_impossible_labels_and_choices():
    with np.errstate(divide="ignore"):
        samples = np.log([[[0.8, 0.2, 0.0]] * 10, [[0.6, 0.4, 0.0]] * 10])
    label = np.array([0] * 6 + [1] * 3 + [2])
    found, short = fit_draw_temperature(samples, label), fit_draw_temperature(samples[:, :9], label[:9])
    assert (found.num_infinite, short.num_infinite) == (1, 0) and found.temperature == short.temperature
    counts = resample_counts(10, 20, 0)
    assert draw_temperature_interval(samples, label, counts).n == 10
    assert draw_temperatures(samples, label, [[1.0, 0.0]]) == pytest.approx(
        fit_temperature(samples[0, :9], label[:9]).temperature, rel=5e-3
    )
    none = fit_draw_temperature(samples, np.full(10, 2))
    assert (none.temperature, none.at_bound, none.num_infinite) == (1.0, True, 10)
    assert np.isnan(draw_temperature_interval(samples, np.full(10, 2), counts).low)
    assert (draw_temperatures(samples, np.full(10, 2), [[0.5, 0.5]]) == 1).all()
    right = fit_draw_temperature(samples, np.zeros(10, dtype=int))
    assert right.at_bound and right.temperature == pytest.approx(TEMPERATURE_BOUNDS[0])


def test_one_draw_far_below_the_others_still_has_a_temperature_alone():
    samples = log_softmax(np.array([[[0.0, 60.0]] * 4, [[2.0, 0.0]] * 4]))
    found = draw_temperatures(samples, [0, 0, 0, 1], [[1.0, 0.0], [0.0, 1.0]])
    assert np.isfinite(found).all() and found[1] == pytest.approx(2 / np.log(3), rel=5e-3)


def test_without_the_draws_that_make_labels_possible_it_is_one():
    """The second draw alone allows the labels of the first items."""
    with np.errstate(divide="ignore"):
        samples = np.log([[[0.0, 1.0]] * 4, [[0.7, 0.3]] * 4])
    weights = [[1.0, 0.0], [0.5, 0.5]]
    alone, both = draw_temperatures(samples, [0, 0, 0, 0], weights)
    assert alone == 1.0 and both == pytest.approx(TEMPERATURE_BOUNDS[0])
    some, _ = draw_temperatures(samples, [0, 0, 0, 1], weights)  # the last item is right at any temperature
    assert np.isfinite(some)


def test_bad_input_is_named():
    samples, label = drawn(0, 2, 5)
    with pytest.raises(DataError, match="must be a non-empty 3-D array"):
        fit_draw_temperature(samples[0], label)
    with pytest.raises(DataError, match="one entry per item"):
        fit_draw_temperature(samples, label[:3])
    with pytest.raises(DataError, match="labels must lie in 0…2"):
        draw_temperature_interval(samples, label + 3, resample_counts(5, 2, 0))
    with pytest.raises(DataError, match=r"weights must have shape \(R, 2\), got \(1, 3\)"):
        draw_temperatures(samples, label, [[0.3, 0.3, 0.4]])
    with pytest.raises(DataError, match="temperature must be > 0, got 0"):
        temper_draws(samples, 0)
