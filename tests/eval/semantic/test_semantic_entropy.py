"""Semantic entropies: published anchors, closed forms, and the split by posterior draws."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.semantic.entropy import (
    chance_information,
    cluster_shares,
    counted_split,
    kuhn_entropy,
    scored_cluster_shares,
    semantic_entropy,
    semantic_split,
    weighted_semantic_entropy,
)


def test_discrete_anchor():
    assert semantic_entropy([0, 0, 1, 2]) == pytest.approx(1.0397207708, abs=1e-10)
    assert semantic_entropy([0, 0, 1, 2]) / np.log(5) == pytest.approx(
        0.646015, abs=5e-7
    )  # as uqlm scales it
    assert semantic_entropy([0]) == 0.0
    assert semantic_entropy([0, 1, 2, 3]) == pytest.approx(np.log(4))


def test_likelihood_anchor():
    """Mean over answers of -log of their cluster's unnormalised likelihood is the other package's 'mean' form."""
    logs, clusters = np.array([-1, -2, -1.5, -3]), [0, 0, 1, 2]
    sums = np.array([np.logaddexp(-1, -2)] * 2 + [-1.5, -3])
    assert -sums.mean() == pytest.approx(1.468369, abs=1e-6)
    assert kuhn_entropy(clusters, logs) == pytest.approx(-(np.logaddexp(-1, -2) - 1.5 - 3) / 3)
    probs = np.array([np.exp(-1) + np.exp(-2), np.exp(-1.5), np.exp(-3)])
    probs /= probs.sum()
    assert weighted_semantic_entropy(clusters, logs) == pytest.approx(-(probs * np.log(probs)).sum())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=10))
def test_equal_likelihoods_give_the_discrete_entropy(classes):
    names = {c: i for i, c in enumerate(dict.fromkeys(classes))}
    clusters = [names[c] for c in classes]
    flat = weighted_semantic_entropy(clusters, [-700.0] * len(clusters))
    assert flat == pytest.approx(semantic_entropy(clusters))
    assert 0 <= flat <= np.log(len(clusters)) + 1e-12


def test_likelihoods_of_long_strings_do_not_underflow():
    assert weighted_semantic_entropy([0, 1], [-4000.0, -4000.0]) == pytest.approx(np.log(2))


def test_shares_by_counting():
    shares = cluster_shares([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 1])
    assert shares == pytest.approx(np.array([[2, 1, 0], [1, 1, 1]]) / 3)
    with pytest.raises(DataError, match="draw 1 has no answer"):
        cluster_shares([0, 1], [0, 2])


def test_shares_by_likelihood():
    logs = np.log([[0.2, 0.1, 0.1], [0.05, 0.05, 0.3]])
    assert scored_cluster_shares([0, 0, 1], logs) == pytest.approx(np.array([[0.75, 0.25], [0.25, 0.75]]))
    with pytest.raises(DataError, match=r"must be \(S, 2\)"):
        scored_cluster_shares([0, 1], logs)
    with pytest.raises(DataError, match="no answer has a likelihood above zero"):
        scored_cluster_shares([0, 1], [[-np.inf, -np.inf]])


def test_the_split_in_closed_form():
    """Draws that are sure of different meanings: all epistemic. Draws that agree on a coin: all aleatoric."""
    split = semantic_split(np.eye(2), antithetic=True)
    assert split == pytest.approx({"total": np.log(2), "expected": 0, "mutual_information": np.log(2)})
    split = semantic_split(np.full((4, 2), 0.5))
    assert split == pytest.approx({"total": np.log(2), "expected": np.log(2), "mutual_information": 0})
    assert semantic_split(np.eye(2))["mutual_information"] == pytest.approx(2 * np.log(2))  # S/(S-1)
    assert np.isnan(semantic_split([[0.5, 0.5]])["mutual_information"])


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_the_split_adds_up(draws, clusters, seed):
    shares = np.random.default_rng(seed).dirichlet(np.ones(clusters), draws)
    split = semantic_split(shares, antithetic=True)
    assert split["total"] == pytest.approx(split["expected"] + split["mutual_information"], abs=1e-9)
    assert split["mutual_information"] >= 0
    assert semantic_split(shares[::-1], antithetic=True) == pytest.approx(split)


def plug_in(clusters, draws) -> float:
    return semantic_split(cluster_shares(clusters, draws), antithetic=True)["mutual_information"]


@pytest.mark.parametrize("clusters", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5], [0] * 6])
@pytest.mark.parametrize("draws", [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]])
def test_chance_is_the_mean_over_all_assignments(clusters, draws):
    every = [plug_in(order, draws) for order in permutations(clusters)]
    assert chance_information(clusters, draws) == pytest.approx(np.mean(every), abs=1e-12)


def test_counting_few_answers_shows_information_that_is_not_there():
    """Every draw has the same three meanings: scored and chance-adjusted splits say so, plain counting does not."""
    rng, probs, draws = np.random.default_rng(0), np.array([0.5, 0.3, 0.2]), np.repeat(np.arange(8), 4)
    answers = [rng.choice(3, 32, p=probs) for _ in range(200)]
    assert np.mean([plug_in(a, draws) for a in answers]) > 0.15
    assert np.mean([counted_split(a, draws)["mutual_information"] for a in answers]) == pytest.approx(
        0, abs=0.02
    )
    scored = semantic_split(scored_cluster_shares([0, 1, 2], np.log(np.tile(probs, (8, 1)))))
    assert scored["mutual_information"] == pytest.approx(0, abs=1e-12)


def test_the_counted_split_adds_up_and_finds_what_is_there():
    draws = np.repeat([0, 1], 8)
    split = counted_split([0] * 8 + [1] * 8, draws)
    assert split["total"] == pytest.approx(np.log(2))
    assert split["mutual_information"] == pytest.approx(
        np.log(2) - chance_information([0] * 8 + [1] * 8, draws)
    )
    assert split["expected"] + split["mutual_information"] == pytest.approx(split["total"])
    assert split["mutual_information"] > 0.6
    assert np.isnan(counted_split([0, 1], [0, 0])["mutual_information"])


def test_bad_input():
    with pytest.raises(DataError, match="non-empty list of numbers"):
        semantic_entropy([])
    with pytest.raises(DataError, match="one entry per item"):
        weighted_semantic_entropy([0, 1], [-1.0])
