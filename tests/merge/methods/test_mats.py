"""MaTS against a dense solve of its normal equations, mn x mn written out."""

from dataclasses import replace

import pytest
import torch
from merge_cases import gram, make_update, positive, rand

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.kronecker import system as kronecker_system
from vlora.merge.kronecker.closed_form import kronecker_merge
from vlora.merge.kronecker.system import (
    Coordinates,
    KroneckerSum,
    LeadingBlock,
    conjugate_gradients,
    solve_kronecker_sum,
)
from vlora.merge.methods.mats import mats, mats_dense


def unit(value):
    return normalised_gram(value, "a test")


def dense_solution(deltas, left, right, weights, ridge):
    """vec of rows: (S (x) G) vec(X) = vec(S X G) for symmetric factors."""
    m, n = deltas[0].shape
    total = ridge * torch.eye(m * n, dtype=torch.float64)
    pull = torch.zeros(m * n, dtype=torch.float64)
    for weight, s, g, delta in zip(weights, left, right, deltas, strict=True):
        block = weight * torch.kron(s, g)
        total += block
        pull += (block + ridge * weight * torch.eye(m * n, dtype=torch.float64)) @ delta.flatten()
    return torch.linalg.solve(total, pull).reshape(m, n)


def energy_error(got, want, left, right, weights, ridge):
    """Distance in the norm of the system, relative."""
    system = KroneckerSum.of(left, right, weights, ridge)
    gap = got - want
    return ((gap * system(gap)).sum() / (want * system(want)).sum()).sqrt().item()


@pytest.mark.parametrize("ridge", [0.3, 1e-3])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 2.0, 1.0)])
def test_conjugate_gradients_solve_the_dense_normal_equations(ridge, weights):
    updates = [make_update(20 * t + 1, r=3) for t in range(3)]
    deltas = [u.delta() for u in updates]
    left, right = [unit(u.output_gram) for u in updates], [unit(u.input_gram) for u in updates]
    want = dense_solution(deltas, left, right, weights, ridge)
    got, steps, residual = mats_dense(deltas, left, right, weights, ridge, steps=500)
    assert energy_error(got, want, left, right, weights, ridge) < 1e-4
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())
    assert 0 < steps < 9  # all 63 entries are in the exact block
    assert residual < 1e-4
    merged = mats(updates, weights, rank=7, tau=ridge, steps=500, damping=0.0)  # 7 = m: nothing is cut
    assert energy_error(merged.update.delta(), want, left, right, weights, ridge) < 1e-4
    assert merged.report["retained_energy"] == pytest.approx(1.0)


def overlapping(count=4, size=40):
    """Adapters whose Grams span decades, each with leading directions of its own and one that all have."""
    decay = torch.arange(1, size + 1, dtype=torch.float64).pow(-1.5)
    common = rand(size, 1, seed=99)
    for t in range(count):
        bases = [torch.linalg.qr(rand(size, size, seed=50 + 2 * t + side)).Q for side in (0, 1)]
        s, g = ((q * decay) @ q.mT + 0.05 * common @ common.mT for q in bases)
        yield replace(make_update(20 * t + 1, size, size, r=3), output_gram=s, input_gram=g)


@pytest.mark.parametrize("entries", [0, 200, 1600])
def test_the_exact_block_saves_steps_and_nothing_else(entries, monkeypatch):
    monkeypatch.setattr(kronecker_system, "PRECONDITIONED", entries)
    updates, weights = list(overlapping()), (1.0, 1.0, 1.0, 1.0)
    left, right = [unit(u.output_gram) for u in updates], [unit(u.input_gram) for u in updates]
    merged = mats(updates, weights, rank=40, damping=0.0)
    want = dense_solution([u.delta() for u in updates], left, right, weights, 0.3)
    assert energy_error(merged.update.delta(), want, left, right, weights, 0.3) < 1e-4
    assert merged.report["steps"] < {0: 100, 200: 50, 1600: 9}[entries]
    again = mats(updates[::-1], weights, rank=40, damping=0.0).update
    assert torch.equal(again.delta(), merged.update.delta())  # whatever the order, the same bits


@pytest.mark.parametrize("damping", [0.5, None])
def test_a_damped_output_side_is_the_system_of_the_damped_grams(damping):
    """S_t becomes (S_t + d I) / (1 + d): the dense solution of those, 10 if d is not given."""
    updates, weights, d = list(overlapping(3, 12)), (1.0, 0.5, 2.0), 10.0 if damping is None else damping
    left, right = [unit(u.output_gram) for u in updates], [unit(u.input_gram) for u in updates]
    left = [(s + d * torch.eye(12, dtype=s.dtype)) / (1 + d) for s in left]
    want = dense_solution([u.delta() for u in updates], left, right, weights, 0.3)
    options = {} if damping is None else {"damping": damping}
    got = mats(updates, weights, rank=12, **options).update.delta()
    assert energy_error(got, want, left, right, weights, 0.3) < 1e-4


def test_damping_leads_from_mats_to_gradient_matching():
    updates, weights = list(overlapping(3, 12)), (1.0, 1.0, 1.0)
    closed = kronecker_merge(updates, weights, 0.3)[0].delta()
    gaps = [
        (mats(updates, weights, rank=12, damping=d).update.delta() - closed).norm().item()
        for d in (0.0, 1.0, 10.0, 1e6)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5 * closed.norm() < 1e-2 * gaps[0]


def test_with_one_sided_curvature_it_is_gradient_matching():
    """S_t = I: the closed form is the solution, so the start leaves nothing to do."""
    identity = torch.eye(7, dtype=torch.float64)
    updates = [replace(make_update(20 * t + 1), output_gram=identity) for t in range(3)]
    merged = mats(updates, [1.0, 0.5, 1.0], rank=7)
    want = kronecker_merge(updates, [1.0, 0.5, 1.0], 0.3)[0].delta()
    torch.testing.assert_close(merged.update.delta(), want, rtol=1e-6, atol=1e-6)
    assert merged.report["steps"] == 0


def test_it_is_the_joint_minimiser_of_quadratic_tasks_with_both_sides():
    """l_t(W) = 1/2 tr(S_t (W - M_t) G_t (W - M_t)^T), each task tuned from 0 under 1/2 tau |W|^2."""
    m, n, tau = 5, 6, 0.3
    left, right = [unit(gram(m, t)) for t in (1, 2)], [unit(gram(n, t)) for t in (3, 4)]
    goals = [rand(m, n, seed=t) for t in (5, 6)]
    tuned, pull, total = [], 0, tau * torch.eye(m * n, dtype=torch.float64)
    for s, g, goal in zip(left, right, goals, strict=True):
        block = torch.kron(s, g)
        own = block + tau * torch.eye(m * n, dtype=torch.float64)
        tuned.append(torch.linalg.solve(own, block @ goal.flatten()).reshape(m, n))
        pull, total = pull + block @ goal.flatten(), total + block
    joint = torch.linalg.solve(total, pull).reshape(m, n)
    got, _, _ = mats_dense(tuned, left, right, [1.0, 1.0], tau, steps=300)
    assert energy_error(got, joint, left, right, (1.0, 1.0), tau) < 1e-4


def test_one_step_where_the_coordinates_make_the_system_diagonal():
    left, right = [unit(gram(6, t)) for t in range(3)], [unit(gram(8, 10 + t)) for t in range(3)]
    weights, identity = (1.0, 2.0, 0.5), torch.eye(6, dtype=torch.float64)
    cases = {
        "one curvature": ([left[0]] * 3, [right[0]] * 3),
        "one side": ([identity] * 3, right),
        "diagonals": ([torch.diag(s.diagonal()) for s in left], [torch.diag(g.diagonal()) for g in right]),
    }
    target = positive(6, 8, seed=10)
    for name, (s, g) in cases.items():
        got, steps, residual = solve_kronecker_sum(s, g, weights, 0.1, target, torch.zeros_like(target), 9)
        assert steps == 1, name
        assert residual < 1e-5, name
        torch.testing.assert_close(KroneckerSum.of(s, g, weights, 0.1)(got), target, rtol=1e-4, atol=1e-4)


def test_the_preconditioner_helps_more_the_more_entries_it_solves_for():
    updates = list(overlapping())
    left, right = [unit(u.output_gram) for u in updates], [unit(u.input_gram) for u in updates]
    bases, target = Coordinates.of(left, right, [1.0] * 4), positive(40, 40, seed=10)
    torch.testing.assert_close(bases.outside(bases.inside(target)), target)
    system = KroneckerSum.of(
        [bases.left.mT @ s @ bases.left for s in left],
        [bases.right.mT @ g @ bases.right for g in right],
        [1.0] * 4,
        0.01,
    )
    ways = [lambda r: r, LeadingBlock(system, 0), LeadingBlock(system, 200), LeadingBlock(system, 1600)]
    counts = [conjugate_gradients(system, target, 500, way)[1] for way in ways]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[2] > counts[3] == pytest.approx(2, abs=2)


def test_a_block_that_rounding_makes_indefinite_is_left_out():
    system = KroneckerSum.of([-torch.eye(3)], [torch.eye(4)], [1.0], 0.5)  # no Gram: all eigenvalues are -0.5
    way, target = LeadingBlock(system, 5), torch.ones(3, 4)
    torch.testing.assert_close(way(target), 2 * target)  # the diagonal, where negative entries count as 0


def test_the_operator_is_the_kronecker_sum_and_few_steps_are_reported():
    left, right = [gram(4, 1), gram(4, 2)], [gram(5, 3), gram(5, 4)]
    system = KroneckerSum.of(left, right, (1.0, 2.0), 0.1)
    dense = (
        0.1 * torch.eye(20, dtype=torch.float64)
        + torch.kron(left[0], right[0])
        + 2 * torch.kron(left[1], right[1])
    )
    x = rand(4, 5, seed=9)
    torch.testing.assert_close(system(x).flatten(), dense @ x.flatten())
    torch.testing.assert_close(system.diagonal().flatten(), dense.diagonal())
    places = torch.tensor([3, 11, 19])
    torch.testing.assert_close(system.block(places // 5, places % 5), dense[places][:, places])
    target = positive(4, 5, seed=10)
    got, steps, residual = solve_kronecker_sum(
        left, right, (1.0, 2.0), 0.1, target, torch.zeros_like(target), 1
    )
    assert steps == 1
    told = ((target - system(got)).norm() / target.norm()).item()
    assert residual == pytest.approx(told, abs=1e-5)


def test_what_it_needs():
    updates = [make_update(1), make_update(20)]
    without = [replace(updates[0], output_gram=None), updates[1]]
    with pytest.raises(
        IncompatibleAdaptersError, match="mats needs output_gram of every adapter, but 'adapter1'"
    ):
        mats(without, [1.0, 1.0], rank=2)
    foreign = [replace(updates[0], output_gram=gram(8, 3)), updates[1]]
    with pytest.raises(IncompatibleAdaptersError, match="has 8 entries a side, its factors ask for 7"):
        mats(foreign, [1.0, 1.0], rank=2)
    with pytest.raises(ConfigError, match="MaTS takes positive weights, got -1"):
        mats(updates, [1.0, -1.0], rank=2)
    with pytest.raises(IncompatibleAdaptersError, match="a MaTS merge has full rank"):
        mats(updates, [1.0, 1.0], rank="lossless")
