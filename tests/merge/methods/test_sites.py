"""Sums of natural parameters: exactness on quadratics, removal, clamping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import make_update, positive, rand

from vlora.merge.methods.gradient_matching import choose_curvature, gradient_matching
from vlora.merge.methods.sites import (
    DiagonalGaussian,
    merge_diagonal,
    merge_shared_a,
    remove_diagonal,
    remove_shared_a,
)


def quadratic_tasks(count, seed=0, size=11):
    """Diagonal losses 1/2 |x - mu_t|^2_{D_t}, each fine-tuned under the prior N(m0, 1/H0)."""
    prior, prior_mean = positive(size, seed=seed), rand(size, seed=seed + 1)
    curvatures = [positive(size, seed=seed + 10 + t) * 3 for t in range(count)]
    optima = [rand(size, seed=seed + 20 + t) for t in range(count)]
    posteriors = [
        DiagonalGaussian((d * mu + prior * prior_mean) / (d + prior), d + prior, prior, prior_mean)
        for d, mu in zip(curvatures, optima, strict=True)
    ]
    return prior, prior_mean, curvatures, optima, posteriors


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=4), st.integers(0, 1000))
def test_the_merge_is_the_true_joint_minimiser(weights, seed):
    prior, prior_mean, curvatures, optima, posteriors = quadratic_tasks(len(weights), seed)
    merged, clamped = merge_diagonal(posteriors, weights)
    total = prior + sum(w * d for w, d in zip(weights, curvatures, strict=True))
    pull = prior * prior_mean + sum(w * d * mu for w, d, mu in zip(weights, curvatures, optima, strict=True))
    torch.testing.assert_close(merged.mean, pull / total)
    torch.testing.assert_close(merged.precision, total)
    assert clamped == 0.0


def test_it_is_the_published_update_rule():
    """theta_0 + sum w Hbar^-1 (H_0 + H_t)(theta_t - theta_0), Daheim et al. 2024."""
    prior, prior_mean, curvatures, _, posteriors = quadratic_tasks(3)
    weights = [1.0, 0.5, 2.0]
    total = prior + sum(w * d for w, d in zip(weights, curvatures, strict=True))
    expected = prior_mean + sum(
        w * (prior + d) * (p.mean - prior_mean) / total
        for w, d, p in zip(weights, curvatures, posteriors, strict=True)
    )
    torch.testing.assert_close(merge_diagonal(posteriors, weights)[0].mean, expected)


def test_neither_the_sum_nor_the_double_counting_average_is_the_minimiser():
    _, prior_mean, _, _, posteriors = quadratic_tasks(2)
    exact = merge_diagonal(posteriors, [1.0, 1.0])[0].mean
    plain = prior_mean + sum(p.mean - prior_mean for p in posteriors)
    fisher = sum(p.precision * p.mean for p in posteriors) / sum(p.precision for p in posteriors)
    assert (plain - exact).norm() > 0.1 * exact.norm()
    assert (fisher - exact).norm() > 0.05 * exact.norm()


def test_merging_in_two_steps_is_merging_at_once():
    *_, posteriors = quadratic_tasks(3)
    at_once = merge_diagonal(posteriors, [1.0, 1.0, 1.0])[0]
    pair = merge_diagonal(posteriors[:2], [1.0, 1.0])[0]
    in_steps = merge_diagonal([pair, posteriors[2]], [1.0, 1.0])[0]
    torch.testing.assert_close(in_steps.mean, at_once.mean)
    torch.testing.assert_close(in_steps.precision, at_once.precision)


@pytest.mark.parametrize("weight", [1.0, 0.3, -0.05])
def test_merge_then_remove_returns_the_input(weight):
    *_, posteriors = quadratic_tasks(2)
    merged, _ = merge_diagonal(posteriors, [1.0, weight])
    left, clamped = remove_diagonal(merged, posteriors[1], weight)
    torch.testing.assert_close(left.mean, posteriors[0].mean)
    torch.testing.assert_close(left.precision, posteriors[0].precision)
    assert clamped == 0.0


def test_removing_what_was_never_there_is_clamped_and_reported():
    *_, posteriors = quadratic_tasks(2)
    left, clamped = remove_diagonal(posteriors[0], posteriors[1], 10.0)
    assert clamped > 0.5
    assert left.precision.min() > 0


def test_negative_curvature_counts_as_no_evidence():
    term = DiagonalGaussian(torch.tensor([2.0]), torch.tensor([0.5]), 1.0)
    precision, natural = term.site()
    assert precision.item() == 0.0
    assert natural.item() == 2.0  # the prior precision times the mean, so that one adapter is unchanged


def test_no_evidence_anywhere_adds_the_updates():
    terms = [DiagonalGaussian(torch.tensor([m]), torch.tensor([1.0]), 1.0) for m in (2.0, 3.0)]
    merged, _ = merge_diagonal(terms, [1.0, 1.0])
    assert merged.mean.item() == pytest.approx(5.0)
    assert merged.precision.item() == 1.0


def test_frozen_a_merges_exactly_in_b():
    """Orthogonal rows of A make the Hessian of B diagonal: the merge is then the joint least squares solution."""
    n, m, r, scale, prior = 8, 5, 3, 2.0, 0.05
    a = torch.linalg.qr(rand(n, r, seed=1))[0].mT * positive(r, seed=2)[:, None]
    targets, curvatures = [rand(m, n, seed=3), rand(m, n, seed=4)], [positive(m, seed=5), positive(m, seed=6)]
    updates, pull = [], torch.zeros(m, r, dtype=torch.float64)
    hess_total = torch.full((m, r), prior, dtype=torch.float64)
    for target, row in zip(targets, curvatures, strict=True):
        hess = scale**2 * torch.outer(row, a.square().sum(1))
        natural = scale * row[:, None] * (target @ a.mT)
        updates.append(make_update(0, m, n, r, scale, a=a))
        updates[-1] = updates[-1].__class__(natural / (hess + prior), a, scale, hess + prior, None, prior)
        pull, hess_total = pull + natural, hess_total + hess
    merged = merge_shared_a(updates, [1.0, 1.0]).update
    torch.testing.assert_close(merged.b, pull / hess_total)
    torch.testing.assert_close(merged.precision_b, hess_total)
    assert merged.rank == r
    assert merged.a is a

    left = remove_shared_a(merged, updates[1]).update
    torch.testing.assert_close(left.b, updates[0].b)


def test_different_scalings_of_one_frozen_a_are_reconciled():
    a = rand(2, 9, seed=1)
    first, second = make_update(3, scale=4.0, a=a), make_update(20, scale=1.0, a=a)
    same = merge_shared_a([first, second.with_scale(4.0)], [1.0, 1.0]).update
    mixed = merge_shared_a([first, second], [1.0, 1.0]).update
    torch.testing.assert_close(mixed.delta(), same.delta())
    torch.testing.assert_close(mixed.with_scale(4.0).precision_b, same.precision_b)
    torch.testing.assert_close(second.with_scale(4.0).delta(), second.delta())


def test_automatic_choice_of_curvature():
    a = rand(2, 9, seed=1)
    frozen = [make_update(s, a=a) for s in (1, 20)]
    assert choose_curvature(frozen) == "sites"
    assert choose_curvature([make_update(1), make_update(20)]) == "kronecker"
    assert choose_curvature([make_update(1), make_update(20, grams=False)]) == "separable"
    assert choose_curvature([make_update(1), make_update(20, grams=False, hess=False)]) == "isotropic"
    assert (
        choose_curvature([make_update(1), make_update(1)]) == "kronecker"
    )  # equal but trained: no shared gauge
    assert gradient_matching(frozen, [1.0, 1.0]).report["exact"] is True


def test_where_priors_differ_the_merged_one_is_their_mean_by_weight():
    """Each site is relative to its own prior, so the data's share is exact whatever the priors are."""
    first = DiagonalGaussian(rand(4, seed=1), positive(4, seed=2) + 1.0, 1.0)
    second = DiagonalGaussian(rand(4, seed=3), positive(4, seed=4) + 3.0, 3.0)
    merged, _ = merge_diagonal([first, second], [3.0, 1.0])
    assert merged.prior_precision == pytest.approx(0.75 * 1.0 + 0.25 * 3.0)
    sites = 3.0 * (first.precision - 1.0) + (second.precision - 3.0)
    torch.testing.assert_close(merged.precision - merged.prior_precision, sites)
    swapped, _ = merge_diagonal([second, first], [1.0, 3.0])
    torch.testing.assert_close(swapped.mean, merged.mean)
