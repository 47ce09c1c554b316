"""Items crossed with draws: the two-way layout in closed form, coverage over both, antithetic pairs."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.crossed import crossed_bootstrap, crossed_interval, draw_weights, weighted_mixture
from vlora.eval.metrics.intervals import bootstrap, resample_counts
from vlora.eval.metrics.proper_scores import brier_score
from vlora.eval.metrics.uncertainty import mixture_log_probs


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_weights_are_resamples_of_draws_or_of_pairs():
    weights = draw_weights(6, 3000, seed=1)
    assert weights.sum(axis=1) == pytest.approx(np.ones(3000))
    assert weights.mean(axis=0) == pytest.approx(np.full(6, 1 / 6), abs=0.01)
    assert weights.var(axis=0) == pytest.approx(np.full(6, (1 / 6) * (5 / 6) / 6), rel=0.15)
    pairs = draw_weights(6, 50, antithetic=True)
    assert (pairs[:, ::2] == pairs[:, 1::2]).all() and pairs.sum(axis=1) == pytest.approx(np.ones(50))


def test_weighted_mixture_equals_repeating_draws():
    draws = log_softmax(np.random.default_rng(0).normal(size=(3, 5, 4)))
    repeated = mixture_log_probs(draws[[0, 0, 2, 2]])
    assert weighted_mixture(draws, [0.5, 0, 0.5]) == pytest.approx(repeated)
    assert weighted_mixture(draws, [1 / 3] * 3) == pytest.approx(mixture_log_probs(draws))


def test_standard_errors_of_a_linear_metric_are_those_of_the_layout():
    rng = np.random.default_rng(1)
    size, draws = 400, 8
    p = np.clip(0.6 + 0.15 * rng.normal(size=(1, size)) + 0.05 * rng.normal(size=(draws, 1)), 0.05, 0.95)
    samples = np.log(np.stack([p, 1 - p], axis=-1))
    per_item = p.mean(axis=0)
    counts = resample_counts(size, 2000)
    items = bootstrap(lambda weights: weights @ per_item, counts) / size
    found = crossed_bootstrap(
        lambda log_probs: float(np.exp(log_probs[:, 0]).mean()), samples, items, num_resamples=4000
    )
    assert found.interval.value == pytest.approx(p.mean())
    assert found.item_error == pytest.approx(per_item.std() / size**0.5, rel=0.06)
    assert found.draw_error == pytest.approx(p.mean(axis=1).std(ddof=1) / draws**0.5, rel=0.06)
    width = (found.item_error**2 + found.draw_error**2) ** 0.5
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * width, rel=0.08)


def test_interval_covers_over_items_and_draws_where_that_over_items_does_not():
    """Brier score with a strong effect of the draw: the target is its mean over new items and sets of S draws."""
    draws, size = 6, 150

    def world(rng):
        shift = 0.8 * rng.normal(size=(draws, 1))
        logit = rng.normal(size=size) + shift
        label = rng.integers(2, size=size)
        return log_softmax(np.stack([logit, np.zeros_like(logit)], axis=-1)), label

    rng = np.random.default_rng(2)
    target = np.mean(
        [brier_score(mixture_log_probs(s), y).mean() for s, y in (world(rng) for _ in range(2000))]
    )
    plain = crossed = 0
    for seed in range(120):
        samples, label = world(rng)
        per_item = brier_score(mixture_log_probs(samples), label)
        items = resample_counts(size, 200, seed) @ per_item / size
        low, high = np.quantile(items, [0.025, 0.975])
        plain += low <= target <= high
        found = crossed_bootstrap(
            lambda log_probs, label=label: float(brier_score(log_probs, label).mean()),
            samples,
            items,
            num_resamples=60,
            seed=seed,
        ).interval
        crossed += found.low <= target <= found.high
        assert found.high - found.low > high - low - 0.02
    assert plain < crossed and crossed / 120 > 0.85


def test_resampling_does_not_shift_a_curved_metric():
    rng = np.random.default_rng(3)
    samples = log_softmax(2 * rng.normal(size=(4, 300, 3)))
    label = rng.integers(3, size=300)
    value = float(brier_score(mixture_log_probs(samples), label).mean())
    found = crossed_bootstrap(
        lambda log_probs: float(brier_score(log_probs, label).mean()), samples, np.full(500, value)
    ).interval
    assert (found.low + found.high) / 2 == pytest.approx(value, abs=0.3 * (found.high - found.low))
    assert found.low < value < found.high


def test_one_draw_or_pair_says_nothing_about_draws():
    samples = log_softmax(np.random.default_rng(4).normal(size=(2, 20, 3)))
    for drawn, antithetic in ((samples[:1], False), (samples, True)):
        found = crossed_bootstrap(lambda p: float(p.mean()), drawn, np.zeros(10), antithetic=antithetic)
        assert np.isnan(found.draw_error) and np.isnan(found.interval.low)
    alike = crossed_interval(0.5, np.linspace(0, 1, 101), np.full(10, 0.5), 7, 4)
    assert alike.draw_error == 0 and alike.interval.low == pytest.approx(0.025) and alike.interval.n == 7


def test_bad_input_is_named():
    samples = log_softmax(np.zeros((3, 2, 2)))
    with pytest.raises(DataError, match="antithetic ones in pairs, got 10 and 3"):
        draw_weights(3, 10, antithetic=True)
    with pytest.raises(DataError, match="weights must be 3 numbers"):
        weighted_mixture(samples, [0.5, 0.5])
    with pytest.raises(DataError, match="must sum to 1 over the choices"):
        weighted_mixture(samples - 1, [1 / 3] * 3)
