"""Sums by sites over one lineage: the formula word for word, the joint minimiser of quadratics, and identities."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import make_update, positive, rand

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.lineage import add_sites, distance_from_ancestor, merge_lineage

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def runs(count, seed=0, size=(5, 3)):
    """Losses 1/2 |x - mu_t|^2_{H_t}, each minimised under the ancestor q_0 = N(m_0, 1 / S_0)."""
    mean, precision = rand(*size, seed=seed), positive(*size, seed=seed + 1)
    own = [4 * positive(*size, seed=seed + 10 + t) for t in range(count)]
    optima = [rand(*size, seed=seed + 30 + t) for t in range(count)]
    means = [(h * mu + precision * mean) / (h + precision) for h, mu in zip(own, optima, strict=True)]
    return mean, precision, own, optima, means


def literal(mean, precision, own, means, weights):
    """S' = S_0 + sum w (S_t - S_0);  S' m' = S_0 m_0 + sum w (S_t m_t - S_0 m_0)."""
    wholes = [precision + h for h in own]
    total = precision + sum(w * (s - precision) for w, s in zip(weights, wholes, strict=True))
    natural = precision * mean + sum(
        w * (s * m - precision * mean) for w, s, m in zip(weights, wholes, means, strict=True)
    )
    return natural / total, total


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=4), st.integers(0, 1000))
def test_it_is_the_formula_and_the_joint_minimiser(weights, seed):
    mean, precision, own, optima, means = runs(len(weights), seed)
    merged, total, clamped = add_sites(mean, precision, list(zip(weights, own, means, strict=True)))
    expected = literal(mean, precision, own, means, weights)
    torch.testing.assert_close((merged, total), expected, **EXACT)
    pull = precision * mean + sum(w * h * mu for w, h, mu in zip(weights, own, optima, strict=True))
    torch.testing.assert_close(merged, pull / total, **EXACT)
    gradient = precision * (merged - mean) + sum(
        w * h * (merged - mu) for w, h, mu in zip(weights, own, optima, strict=True)
    )
    assert gradient.abs().max() < 1e-12
    assert clamped == 0.0


def test_sum_of_changes_and_plain_mean_are_not_the_minimiser():
    mean, precision, own, optima, means = runs(2)
    exact = add_sites(mean, precision, [(1.0, h, m) for h, m in zip(own, means, strict=True)])[0]
    for other in (mean + sum(m - mean for m in means), sum(means) / 2):
        assert (other - exact).norm() > 0.1 * exact.norm()


def test_what_went_in_comes_out_again():
    mean, precision, own, _, means = runs(3)
    terms = [(w, h, m) for w, h, m in zip((1.0, 0.4, 2.0), own, means, strict=True)]
    merged, total, _ = add_sites(mean, precision, terms)
    weight, h, m = terms[2]
    back = add_sites(mean, precision, [(1.0, total - precision, merged), (-weight, h, m)], removing=True)
    torch.testing.assert_close(back[:2], add_sites(mean, precision, terms[:2])[:2], **EXACT)
    assert back[2] == 0.0


def test_a_contributor_that_holds_nearly_all_precision_is_still_removed_exactly():
    mean, precision, own, _, means = runs(2)
    heavy = 1e6 * own[1]
    merged, total, _ = add_sites(mean, precision, [(1.0, own[0], means[0]), (1.0, heavy, means[1])])
    left, rest, clamped = add_sites(
        mean, precision, [(1.0, total - precision, merged), (-1.0, heavy, means[1])], removing=True
    )
    torch.testing.assert_close(rest, precision + own[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(left, means[0], rtol=1e-6, atol=1e-8)
    assert clamped == 0.0


def test_merging_in_two_rounds_is_merging_at_once():
    mean, precision, own, _, means = runs(3)
    terms = [(1.0, h, m) for h, m in zip(own, means, strict=True)]
    pair, total, _ = add_sites(mean, precision, terms[:2])
    rounds = add_sites(mean, precision, [(1.0, total - precision, pair), terms[2]])
    torch.testing.assert_close(rounds[:2], add_sites(mean, precision, terms)[:2], **EXACT)


def family(weights_seed=0, count=3):
    start = make_update(100, grams=False)
    children = []
    for t in range(count):
        child = make_update(200 + 10 * t, grams=False)
        children.append(
            replace(
                child,
                a=start.a + 0.1 * child.a,
                b=start.b + 0.1 * child.b,
                prior_a=0.0,
                prior_b=0.0,
                ancestor=start,
            )
        )
    return start, children


def test_a_module_keeps_rank_and_scaling_and_both_factors_follow_the_formula():
    start, children = family()
    weights = [1.0, 0.5, 2.0]
    done = gradient_matching(children, weights)
    for side in ("a", "b"):
        expected = literal(
            getattr(start, side),
            getattr(start, f"precision_{side}"),
            [getattr(c, f"precision_{side}") for c in children],
            [getattr(c, side) for c in children],
            weights,
        )
        got = getattr(done.update, side), getattr(done.update, f"precision_{side}")
        torch.testing.assert_close(got, expected, **EXACT)
    assert (done.update.rank, done.update.scale) == (start.rank, start.scale)
    assert (done.update.prior_a, done.update.prior_b) == (start.prior_a, start.prior_b)
    assert done.report["curvature"] == "sites"
    for child in children:
        expected = ((child.a - start.a).norm() / start.a.norm()).item()
        assert done.report["from_ancestor"][child.adapter] == pytest.approx(expected)
        assert distance_from_ancestor(child) == pytest.approx(expected)


def test_identities():
    start, children = family()
    alone = merge_lineage(children[:1], [1.0]).update
    torch.testing.assert_close((alone.a, alone.b), (children[0].a, children[0].b), **EXACT)
    forth, back = merge_lineage(children, [1.0, 2.0, 3.0]), merge_lineage(children[::-1], [3.0, 2.0, 1.0])
    torch.testing.assert_close(forth.update.b, back.update.b, **EXACT)
    nothing = torch.zeros_like
    itself = replace(
        start,
        precision_a=nothing(start.a),
        precision_b=nothing(start.b),
        ancestor=start,
        prior_a=0.0,
        prior_b=0.0,
    )
    with_it = merge_lineage([*children, itself], [1.0, 2.0, 3.0, 1.0]).update
    torch.testing.assert_close(with_it.b, forth.update.b, **EXACT)
    torch.testing.assert_close(with_it.precision_a, forth.update.precision_a, **EXACT)


def test_a_negative_weight_takes_out_or_moves_away():
    start, children = family(count=2)
    removed = gradient_matching(children, [1.0, -0.05])
    expected = literal(
        start.b, start.precision_b, [c.precision_b for c in children], [c.b for c in children], [1.0, -0.05]
    )
    torch.testing.assert_close((removed.update.b, removed.update.precision_b), expected, **EXACT)
    away = gradient_matching(children[1:], [-1.0], negative="negate").update
    torch.testing.assert_close(away.b - start.b, start.b - children[1].b, **EXACT)
    assert gradient_matching(children, [1.0, -50.0]).report["clamped_fraction"] > 0.5


def test_a_frozen_factor_stays():
    start, children = family()
    start = replace(start, precision_a=None, prior_a=0.0)
    frozen = [replace(c, a=start.a, precision_a=None, ancestor=start) for c in children]
    merged = merge_lineage(frozen, [1.0, 1.0, 1.0]).update
    assert merged.a is start.a
    assert merged.precision_a is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "kronecker"}, "summed by sites"),
        ({"scale": 0.5}, "with scale 1"),
        ({"rank": 1}, "rank is 1, but runs of one ancestor keep its rank, 2"),
        ({"rank": 0.9}, "rank is 0.9"),
    ],
)
def test_what_a_sum_of_sites_cannot_do_is_refused(options, message):
    _, children = family()
    with pytest.raises(IncompatibleAdaptersError, match=message):
        gradient_matching(children, [1.0, 1.0, 1.0], **options)
