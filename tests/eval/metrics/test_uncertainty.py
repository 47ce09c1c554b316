"""The split of predictive entropy: identities, signs, and the correction for few draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.uncertainty import (
    chosen_std,
    disagreement,
    entropy,
    expected_entropy,
    expected_pairwise_kl,
    kl_from_mean,
    mixture_log_probs,
    mutual_information,
    reverse_mutual_information,
    variation_ratio,
)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def test_entropy_by_hand_and_with_impossible_choices():
    with np.errstate(divide="ignore"):
        rows = np.log([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    assert entropy(rows) == pytest.approx([np.log(4), np.log(2), 0])


def test_disagreeing_certain_draws_are_all_epistemic():
    with np.errstate(divide="ignore"):
        draws = np.log([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert expected_entropy(draws) == pytest.approx([0.0])
    assert mutual_information(draws, corrected=False) == pytest.approx([np.log(2)])
    assert mixture_log_probs(draws) == pytest.approx(np.log([[0.5, 0.5]]))


def test_correction_only_for_independent_draws():
    draws = log_softmax(np.random.default_rng(0).normal(size=(4, 10, 3)))
    plain = mutual_information(draws, corrected=False)
    assert mutual_information(draws) == pytest.approx(plain * 4 / 3)
    assert mutual_information(draws, antithetic=True) == pytest.approx(plain)
    assert np.isnan(mutual_information(draws[:1])).all()
    assert (mutual_information(draws[:1], corrected=False) == 0).all()


def test_correction_removes_the_bias_of_few_draws():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(3000, 4))
    reference = mutual_information(log_softmax(base + 0.5 * rng.normal(size=(256, 3000, 4)))).mean()
    few = log_softmax(base + 0.5 * rng.normal(size=(4, 3000, 4)))
    assert mutual_information(few).mean() == pytest.approx(reference, rel=0.05)
    assert mutual_information(few, corrected=False).mean() < 0.8 * reference


def test_mixture_is_exact_for_equal_draws_and_safe_when_tiny():
    draws = np.tile(log_softmax(np.random.default_rng(2).normal(size=(1, 5, 3)) * 300), (7, 1, 1))
    assert (mixture_log_probs(draws) == draws[0]).all()
    assert mixture_log_probs([[[-2000.0, 0.0]], [[-2000.0, 0.0]]]) == pytest.approx(
        np.array([[-2000.0, 0.0]])
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 6),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 1.0, 40.0]),
)
def test_properties(draws, items, choices, seed, spread):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, items, choices))
    log_probs = log_softmax(shared + spread * rng.normal(size=(draws, items, choices)))
    total, aleatoric = entropy(mixture_log_probs(log_probs)), expected_entropy(log_probs)
    epistemic = mutual_information(log_probs, corrected=False)
    assert (epistemic >= 0).all()
    assert total == pytest.approx(aleatoric + epistemic, abs=1e-12)
    if spread == 0 or draws == 1:
        assert (epistemic == 0).all()
    for axis in (0, 2):
        shuffled = np.take(log_probs, rng.permutation(log_probs.shape[axis]), axis)
        assert mutual_information(shuffled, corrected=False) == pytest.approx(epistemic, abs=1e-12)
    order = rng.permutation(items)
    assert mutual_information(log_probs[:, order], corrected=False) == pytest.approx(
        epistemic[order], abs=1e-12
    )


def test_votes_by_hand():
    with np.errstate(divide="ignore"):
        draws = np.log([[[0.6, 0.4, 0.0]], [[0.9, 0.1, 0.0]], [[0.2, 0.3, 0.5]], [[0.5, 0.5, 0.0]]])
    # Votes: 0, 0, 2, and one split between 0 and 1.
    assert variation_ratio(draws) == pytest.approx([1 - 2.5 / 4])
    differ = [0, 1, 0.5, 1, 0.5, 1]  # pairs 01, 02, 03, 12, 13, 23
    assert disagreement(draws) == pytest.approx([np.mean(differ)])
    assert np.isnan(disagreement(draws[:1])).all() and variation_ratio(draws[:1]) == pytest.approx([0])


def test_pairwise_divergence_equals_its_double_sum():
    draws = log_softmax(np.random.default_rng(5).normal(size=(4, 6, 3)))
    pairs = [
        (np.exp(draws[s]) * (draws[s] - draws[t])).sum(axis=1) for s in range(4) for t in range(4) if s != t
    ]
    assert expected_pairwise_kl(draws) == pytest.approx(np.mean(pairs, axis=0))
    assert (expected_pairwise_kl(draws) >= mutual_information(draws) - 1e-12).all()
    with np.errstate(divide="ignore"):
        certain = np.log([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]])
    assert expected_pairwise_kl(certain) == pytest.approx([np.inf])
    assert expected_pairwise_kl(certain[[0, 0]]) == pytest.approx([0])
    assert np.isnan(expected_pairwise_kl(draws[:1])).all()


def test_reverse_information_by_hand():
    draws = np.log(
        [[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.3, 0.7]]]
    )  # mixture (.7, .3), and one answer twice
    by_hand = (0.7 * np.log(0.7 / 0.9) + 0.3 * np.log(0.3 / 0.1)) / 2
    by_hand += (0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.5)) / 2
    assert reverse_mutual_information(draws, corrected=False) == pytest.approx([by_hand, 0])
    assert reverse_mutual_information(draws) == pytest.approx([2 * by_hand, 0])
    assert reverse_mutual_information(draws, antithetic=True) == pytest.approx([by_hand, 0])
    with np.errstate(divide="ignore"):
        sure = np.log(
            [[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]]
        )  # the second choice is ruled out by one draw alone
    assert reverse_mutual_information(sure) == pytest.approx([np.inf])
    assert mutual_information(sure) < 1
    assert np.isnan(reverse_mutual_information(draws[:1])).all()
    assert (reverse_mutual_information(draws[:1], corrected=False) == 0).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([0.0, 1e-3, 1.0, 40.0]))
def test_pairwise_divergence_is_both_informations_together(draws, choices, seed, spread):
    """The double sum over all pairs, literally, is MI + RMI; over different pairs with both corrected."""
    rng = np.random.default_rng(seed)
    samples = log_softmax(rng.normal(size=(1, 4, choices)) + spread * rng.normal(size=(draws, 4, choices)))
    divergence = np.array(
        [[(np.exp(p) * (p - q)).sum(axis=1) for q in samples] for p in samples]
    )  # (S, S, N)
    for options in ({"corrected": False}, {"antithetic": True}):
        mutual = mutual_information(samples, **options)
        reverse = reverse_mutual_information(samples, **options)
        assert mutual + reverse == pytest.approx(divergence.mean(axis=(0, 1)), rel=1e-9, abs=1e-12)
        assert expected_pairwise_kl(samples, **options) == pytest.approx(mutual + reverse, rel=1e-12)
        assert (reverse >= 0).all()
    other = ~np.eye(draws, dtype=bool)
    assert expected_pairwise_kl(samples) == pytest.approx(divergence[other].mean(axis=0), rel=1e-9, abs=1e-12)
    order = rng.permutation(draws)
    assert reverse_mutual_information(samples[order]) == pytest.approx(reverse_mutual_information(samples))


def test_few_draws_of_either_kind_have_no_bias():
    """Small Gaussian noise on logits: 4 independent draws corrected and one mirrored pair plain give what many give."""
    rng = np.random.default_rng(11)
    base = rng.normal(size=(4000, 4))
    many = log_softmax(base + 0.3 * rng.normal(size=(256, 4000, 4)))
    few, noise = log_softmax(base + 0.3 * rng.normal(size=(4, 4000, 4))), 0.3 * rng.normal(size=(4000, 4))
    pair = log_softmax(np.stack([base + noise, base - noise]))
    for measure in (reverse_mutual_information, expected_pairwise_kl):
        reference = measure(many).mean()
        assert measure(few).mean() == pytest.approx(reference, rel=0.05)
        assert measure(pair, antithetic=True).mean() == pytest.approx(reference, rel=0.06)
        assert measure(few, corrected=False).mean() == pytest.approx(0.75 * reference, rel=0.06)


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"must sum to 1 over the choices, got 0\.2707 in 1 of 1 rows"):
        entropy([[-2.0, -2.0]])
    with pytest.raises(DataError, match="must be a non-empty 3-D array"):
        mutual_information([[0.0]])
    with pytest.raises(DataError, match="were logits passed"):
        entropy([[2.0, 1.0]])
    with pytest.raises(DataError, match="must be a non-empty 3-D array"):
        reverse_mutual_information([[0.0]])
    with pytest.raises(DataError, match="must sum to 1"):
        expected_pairwise_kl([[[-2.0, -2.0]]])
    with pytest.raises(DataError, match="holds NaN"):
        entropy([[float("nan"), 0.0]])


def test_spread_of_the_chosen_probability_by_hand():
    draws = np.log([[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.2, 0.8]], [[0.9, 0.1], [0.2, 0.8]]])
    assert chosen_std(draws) == pytest.approx([0.2, 0.0])  # of .7 .5 .9 with S - 1
    split = np.log([[[0.6, 0.4]], [[0.1, 0.9]]])  # the mixture chooses the second class: .4 and .9
    assert chosen_std(split) == pytest.approx([0.5 / 2**0.5])
    assert np.isnan(chosen_std(draws[:1])).all()


def test_divergence_from_the_mean_by_hand():
    with np.errstate(divide="ignore"):
        draws, sure = np.log([[[1.0, 0.0]], [[0.5, 0.5]]]), np.log([[1.0, 0.0]])
    at_mean = np.log([[0.5, 0.5]])
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert kl_from_mean(draws, at_mean) == pytest.approx([expected])
    assert np.isinf(kl_from_mean(draws, sure)).all()  # the mean rules out what a draw allows
    assert kl_from_mean(draws[:1], sure) == pytest.approx([0.0])
    same = log_softmax(np.random.default_rng(3).normal(size=(1, 6, 4)))
    assert kl_from_mean(np.repeat(same, 3, axis=0), same[0]) == pytest.approx(np.zeros(6), abs=1e-12)
    with pytest.raises(
        DataError, match=r"mean_log_probs must have shape \(6, 4\) as the draws, got \(5, 4\)"
    ):
        kl_from_mean(same, same[0, :5])
