"""KnOTS and core space: lossless coordinates, and the papers' dense formulas as oracles."""

from dataclasses import replace

import pytest
import torch
from merge_cases import make_update, rand

from vlora.merge.low_rank.algebra import truncate, truncate_dense
from vlora.merge.low_rank.spaces import core_coordinates, knots_coordinates
from vlora.merge.methods.ties import ties, ties_merge


def updates_of(count=3, m=11, n=14):
    return [make_update(20 * t + 1, m=m, n=n, scale=1.0 + t) for t in range(count)]


def dense_knots(deltas, rule):
    """KnOTS as published: SVD of the dense updates side by side, merge the V_t, multiply back."""
    u, s, vh = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    keep = s > 1e-9 * s[0]
    parts = (vh[keep]).split(deltas[0].shape[1], dim=1)
    return (u[:, keep] * s[keep]) @ rule(list(parts))


@pytest.mark.parametrize("coordinates", [knots_coordinates, core_coordinates])
def test_every_update_is_held_exactly(coordinates):
    updates = updates_of()
    tensors, factors = coordinates(updates)
    for tensor, update in zip(tensors, updates, strict=True):
        b, a = factors(tensor)
        torch.testing.assert_close(b @ a, update.delta())
        assert a.shape[0] == 6


@pytest.mark.parametrize("coordinates", [knots_coordinates, core_coordinates])
def test_directions_that_adapters_share_are_held_once(coordinates):
    update = make_update(1)
    tensors, _ = coordinates([update, replace(update, b=3 * update.b)])
    assert tensors[0].shape[0] == 2
    torch.testing.assert_close(tensors[1], 3 * tensors[0])


def test_knots_ties_is_the_dense_formula():
    updates, weights = updates_of(), [1.0, 0.5, 2.0]
    expected = dense_knots([u.delta() for u in updates], lambda parts: ties_merge(parts, weights, 0.3))
    merged = ties(updates, weights, density=0.3, space="knots", rank="lossless")
    torch.testing.assert_close(merged.update.delta(), expected)
    assert merged.report["exact"]
    assert merged.update.rank == 6
    b, a, retained = truncate_dense(expected, 2)
    small = ties(updates, weights, density=0.3, space="knots", rank=2)
    torch.testing.assert_close(small.update.delta(), b @ a)
    assert small.report["retained_energy"] == pytest.approx(retained)


def test_core_space_ties_is_the_dense_formula():
    """Reference bases from dense projections: B's columns and A's rows, scaling in B."""
    updates, weights = updates_of(), [1.0, 0.5, 2.0]
    left = torch.linalg.svd(torch.cat([u.scale * u.b for u in updates], dim=1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat([u.a for u in updates], dim=0), full_matrices=False)[2]
    cores = [left.mT @ u.delta() @ right.mT for u in updates]
    expected = left @ ties_merge(cores, weights, 0.3) @ right
    merged = ties(updates, weights, density=0.3, space="core", rank="lossless")
    torch.testing.assert_close(merged.update.delta(), expected)


@pytest.mark.parametrize("space", ["knots", "core"])
def test_the_order_of_adapters_does_not_matter(space):
    updates, weights = updates_of(), [1.0, 0.5, 2.0]
    first = ties(updates, weights, density=0.3, space=space, rank="lossless").update.delta()
    second = ties(updates[::-1], weights[::-1], density=0.3, space=space, rank="lossless").update.delta()
    torch.testing.assert_close(first, second)


def test_knots_does_not_see_the_split_into_factors():
    updates = updates_of()
    mix = rand(2, 2, seed=9)
    mixed = [replace(updates[0], b=updates[0].b @ mix, a=torch.linalg.inv(mix) @ updates[0].a), *updates[1:]]
    merged = [ties(u, [1.0, 1.0, 1.0], density=0.3, space="knots", rank="lossless") for u in (updates, mixed)]
    torch.testing.assert_close(merged[0].update.delta(), merged[1].update.delta())


@pytest.mark.parametrize("space", ["full", "knots", "core"])
def test_untouched_adapters_merge_to_an_adapter_of_rank_one_at_least(space):
    updates = [make_update(s, hess=False, grams=False) for s in (1, 20)]
    zeros = [replace(u, b=torch.zeros_like(u.b)) for u in updates]
    merged = ties(zeros, [1.0, 1.0], space=space).update
    assert merged.rank >= 1
    assert not merged.delta().any()
    assert torch.isfinite(merged.b).all()


def test_large_dense_matrices_are_factorised_by_iteration_just_as_well():
    """A matrix beyond the exact size whose leading part is known: the iteration finds it and says what it kept."""
    b, a = rand(600, 5, seed=1), rand(5, 560, seed=2)
    noise = 0.05 * rand(600, 560, seed=3)
    b_found, a_found, retained = truncate_dense(b @ a + noise, 5)
    values = torch.linalg.svdvals(b @ a + noise).square()
    assert retained == pytest.approx((values[:5].sum() / values.sum()).item(), rel=1e-9)
    lost = (b @ a + noise - b_found @ a_found).square().sum().item() / values.sum().item()
    assert lost == pytest.approx(1 - retained, rel=1e-6)
    exact_b, exact_a, _ = truncate(b, a, 5)
    b_found, a_found, retained = truncate_dense(b @ a, 5)
    torch.testing.assert_close(b_found @ a_found, exact_b @ exact_a)
    assert retained == pytest.approx(1)
