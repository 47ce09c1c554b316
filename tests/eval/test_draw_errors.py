"""The error of posterior draws in intervals: known variances are recovered, and intervals over both sources cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import make_model, metrics_of

from vlora.eval.choice_draws import ChoiceDraws
from vlora.eval.metrics.crossed import draw_deviations, draw_spread, draw_weights
from vlora.eval.metrics.draw_temperature import fit_draw_temperature, temper_draws
from vlora.eval.metrics.intervals import resample_counts
from vlora.eval.metrics.temperature import fit_temperature
from vlora.eval.metrics.uncertainty import expected_entropy, mixture_log_probs
from vlora.eval.results import compute_results
from vlora.eval.text_draws import TextDraws


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def choice_draws(samples, antithetic=False, held_out=0, at_mean=None):
    size, width = samples.shape[1:]
    label = np.random.default_rng(0).integers(width, size=size)
    truth = np.full((size, width), np.nan)
    at_mean = mixture_log_probs(samples) if at_mean is None else at_mean
    return ChoiceDraws(samples, at_mean, label, truth, np.arange(held_out), antithetic)


def mean_of(name):
    return lambda columns, _: {name: float(columns[name].mean())}


@given(seed=st.integers(0, 10**6), draws=st.integers(3, 12), spread=st.floats(0.05, 1.0))
@settings(max_examples=15, deadline=None)
def test_the_error_of_a_mean_over_draws_is_its_standard_error(seed, draws, spread):
    """Expected entropy is linear in the draws, so its draw error is sd(H_s) / S^(1/2), known in closed form."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(1, 40, 3)) * (1 + spread * rng.normal(size=(draws, 1, 1)))
    samples = log_softmax(logits)
    found = choice_draws(samples).replicates("samples", np.arange(40), mean_of("expected_entropy"))
    by_draw = [expected_entropy(one[None]).mean() for one in samples]
    wanted = np.std(by_draw, ddof=1) / draws**0.5
    assert draw_spread(found["expected_entropy"], draws) == pytest.approx(wanted, rel=0.35)  # 100 resamples


def test_simulated_draws_have_the_error_that_new_sets_of_draws_show():
    """Gaussian draws: the error estimated from one set is the spread of the metric over many sets."""
    rng, size, draws = np.random.default_rng(3), 60, 16
    base, rows = rng.normal(size=(size, 4)), np.arange(size)

    def fresh():
        return choice_draws(
            log_softmax(base + 0.8 * rng.normal(size=(draws, 1, 4))), at_mean=log_softmax(base)
        )

    def means(columns, _=None):
        names = ("nll", "brier", "entropy", "mutual_information", "kl_from_mean", "chosen_std")
        return {name: float(columns[name].mean()) for name in names}

    values = [means(fresh()._columns(np.arange(draws), rows, None)[0]) for _ in range(300)]
    estimates = [fresh().replicates("samples", rows, means) for _ in range(20)]
    for name in values[0]:
        truth = np.std([value[name] for value in values])
        found = [draw_spread(estimate[name], draws) for estimate in estimates]
        if (
            name == "kl_from_mean"
        ):  # its slope is 0 where draws and mean agree: resamples say too much, never too little
            assert truth < np.mean(found) < 2.5 * truth
        else:
            assert np.mean(found) == pytest.approx(truth, rel=0.3), name


def test_mirrored_pairs_cancel_what_is_odd_and_one_pair_says_nothing():
    rng = np.random.default_rng(4)
    noise = 0.01 * rng.normal(size=(4, 1, 2))
    base = rng.normal(size=(30, 2))
    mirrored = log_softmax(base + np.stack([noise, -noise], axis=1).reshape(8, 1, 2))
    apart = log_softmax(base + 0.01 * rng.normal(size=(8, 1, 2)))
    rows = np.arange(30)
    error = [
        draw_spread(choice_draws(s, antithetic=a).replicates("samples", rows, mean_of("nll"))["nll"], units)
        for s, a, units in ((mirrored, True, 4), (apart, False, 8))
    ]
    assert error[0] < 0.1 * error[1]
    single = choice_draws(mirrored[:2], antithetic=True)
    assert single.num_units == 1 and draw_spread(np.zeros(1), 1) is None


def test_a_temperature_is_fitted_again_to_every_resample():
    rng = np.random.default_rng(5)
    samples = log_softmax(3 * rng.normal(size=(6, 80, 3)))
    draws = choice_draws(samples, held_out=40)
    found = draws.replicates(
        "samples+temperature", np.arange(40, 80), lambda columns, drawn: {"t": drawn.temperature}
    )
    weights = draw_weights(6, 100)
    chosen = np.repeat(np.arange(6), np.round(weights[0] * 6).astype(int))
    held_out = mixture_log_probs(samples[chosen][:, :40])
    assert found["t"][0] == pytest.approx(fit_temperature(held_out, draws.label[:40]).temperature)
    assert len(set(found["t"])) > 50


def test_a_temperature_of_the_draws_is_fitted_again_and_the_draws_split_at_it():
    rng = np.random.default_rng(5)
    samples = log_softmax(3 * rng.normal(size=(6, 80, 3)))
    draws, rows = choice_draws(samples, held_out=40), np.arange(40, 80)

    def values(columns, drawn):
        names = ("expected_entropy", "mutual_information", "expected_pairwise_kl")
        return {"t": drawn.temperature} | {name: float(columns[name].mean()) for name in names}

    few = draws.replicates("samples+draw_temperature", rows, values, ranks=True)
    found = draws.replicates("samples+draw_temperature", rows, values)
    chosen = np.repeat(np.arange(6), np.round(draw_weights(6, 100)[0] * 6).astype(int))
    temperature = fit_draw_temperature(samples[chosen][:, :40], draws.label[:40]).temperature
    assert found["t"][0] == pytest.approx(temperature, rel=5e-3)
    tempered = temper_draws(samples[chosen][:, 40:], found["t"][0])
    assert found["expected_entropy"][0] == pytest.approx(expected_entropy(tempered).mean())
    assert len(few["t"]) == 40 and (few["t"] == found["t"][:40]).all()
    assert few["mutual_information"] == pytest.approx(found["mutual_information"][:40])


def test_every_metric_of_a_sampled_predictor_has_both_errors():
    rows = make_model("ivon", 0.3, seed=2)
    found = compute_results(rows, num_bootstrap=60)
    for predictor, group in (
        *(("samples", "all"), ("samples", "hard")),
        *(("samples+temperature", "all"), ("samples+draw_temperature", "all")),
    ):
        metrics = metrics_of(found, "ivon", predictor, group)
        assert len(metrics) > 15
        for name, entry in metrics.items():
            assert entry.get("draw_error") is not None, (predictor, group, name)
            assert name == "temperature" or entry["crossed_low"] <= entry["crossed_high"], name
    assert all("draw_error" not in entry for entry in metrics_of(found, "ivon", "mean", "all").values())


def text_draws(by_token, entropy, antithetic=False):
    """From log p_s(y_t) of every text, each ``(S, T)``."""
    weight = [np.exp(one - np.log(np.exp(one).mean(0))).sum(1) for one in by_token]
    nll = np.array([-one.sum(1) for one in by_token])
    return TextDraws(
        nll, entropy, np.array(weight), np.array([one.shape[1] for one in by_token], float), antithetic
    )


def test_texts_under_resampled_draws_are_those_of_the_weighted_mixtures():
    rng = np.random.default_rng(6)
    tokens = [-np.abs(1 + 0.1 * rng.normal(size=(5, count))) for count in (3, 7, 4)]
    entropy = rng.random((3, 5))
    draws, weights = text_draws(tokens, entropy), draw_weights(5, 40, seed=2)
    found = draws.replicates(np.arange(3), weights)
    total = sum(one.shape[1] for one in tokens)
    for number, row in enumerate(weights):
        whole = -sum(np.log(row @ np.exp(one.sum(1))) for one in tokens) / total
        expected = -sum(row @ one.sum(1) for one in tokens) / total
        assert found["nll_sequence"][number] == pytest.approx(whole)
        assert found["sequence_information"][number] == pytest.approx(expected - whole)
        assert found["expected_entropy"][number] == pytest.approx(row @ entropy.sum(0) / total)
        mixed = [-(np.log(row @ np.exp(one)) - np.log(np.exp(one).mean(0))).sum() for one in tokens]
        assert found["nll"][number] == pytest.approx(sum(mixed) / total, abs=0.003)  # to first order
    assert np.std(found["nll"]) > 0.01


def test_the_known_variance_of_simulated_texts_is_recovered():
    """Every draw adds its own N(0, sd^2) to the log-probability of each token: nll moves by the mean of S shifts."""
    rng, draws, sd, errors = np.random.default_rng(7), 12, 0.05, []
    for _ in range(60):
        shift = sd * rng.normal(size=(draws, 1))
        tokens = [np.full((1, 5), -2.0) + shift for _ in range(20)]
        found = text_draws(tokens, np.ones((20, draws))).replicates(
            np.arange(20), draw_weights(draws, 200, seed=1)
        )
        errors.append([draw_deviations(found[name], draws).std() for name in ("nll",)][0])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(sd / draws**0.5, rel=0.12)


def test_intervals_over_texts_and_draws_cover():
    """Texts with a strong effect of the draw: intervals over both cover the mean over new texts and draws."""
    size, count = 40, 16

    def world(rng):
        shift = 0.3 * rng.normal(size=(count, 1))
        return [-1 + 0.2 * rng.normal(size=(1, 4)) + shift for _ in range(size)]

    rng = np.random.default_rng(8)
    every = np.arange(size)

    def nll(tokens):
        return np.array([-np.log(np.exp(one).mean(0)).sum() for one in tokens])

    target = np.mean([nll(world(rng)).sum() / (4 * size) for _ in range(1500)])
    plain = crossed = 0
    for seed in range(250):
        tokens = world(rng)
        own = nll(tokens)
        items = resample_counts(size, 300, seed) @ own / (4 * size)
        metrics = {"nll": {"value": own.sum() / (4 * size)}}
        low, high = np.quantile(items, [0.025, 0.975])
        plain += low <= target <= high
        text_draws(tokens, np.ones((size, count))).add_errors(metrics, {"nll": items}, every, seed)
        crossed += metrics["nll"]["crossed_low"] <= target <= metrics["nll"]["crossed_high"]
    assert plain / 250 < 0.6 and 0.88 < crossed / 250 < 0.99
