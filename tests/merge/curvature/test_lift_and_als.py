"""The curvature lift and the factored weighted least squares, against dense literal versions."""

import pytest
import torch
from merge_cases import make_update, positive, rand

from vlora.merge.curvature.lift import lift, lift_update, pull_back
from vlora.merge.low_rank.als import Precision, Target, weighted_als, weighted_objective
from vlora.merge.low_rank.recompress import pooled_precision
from vlora.merge.methods.separable import separable_merge


def pulled_back_dense(hess, b, a, scale):
    return scale**2 * hess @ a.square().mT, scale**2 * b.square().mT @ hess


def test_lift_recovers_a_separable_curvature_exactly():
    row, col = positive(30, seed=1) * torch.logspace(-2, 2, 30, dtype=torch.float64), positive(20, seed=2)
    b, a = rand(30, 4, seed=3), rand(4, 20, seed=4)
    true = torch.outer(row, col)
    found_row, found_col = lift(*pulled_back_dense(true, b, a, 1.7), b, a, 1.7)
    torch.testing.assert_close(torch.outer(found_row, found_col), true, rtol=1e-10, atol=0)
    assert found_col.mean().item() == pytest.approx(1.0)


def test_lift_is_robust_to_noise_and_one_over_variance_is_not():
    """With 45 % multiplicative noise and uneven factors the lift still ranks the weights; 1/Var does not."""
    m, n, r = 60, 50, 4
    row, col = torch.exp(rand(m, seed=1)), torch.exp(rand(n, seed=2))
    reach_b, reach_a = torch.exp(rand(m, seed=3)), torch.exp(rand(n, seed=4))
    b, a = rand(m, r, seed=5) * reach_b[:, None], rand(r, n, seed=6) * reach_a
    true = torch.outer(row, col)
    h_b, h_a = pulled_back_dense(true, b, a, 1.0)
    h_b = h_b * (1 + 0.45 * rand(m, r, seed=7)).clamp_min(0)
    h_a = h_a * (1 + 0.45 * rand(r, n, seed=8)).clamp_min(0)
    found = torch.outer(*lift(h_b, h_a, b, a, 1.0))
    delta = 1e-3
    v_b, v_a = 1 / (h_b + delta), 1 / (h_a + delta)
    inverse_variance = 1 / (v_b @ a**2 + b**2 @ v_a + v_b @ v_a)

    def agreement(x):
        return torch.corrcoef(torch.stack([x.log().flatten(), true.log().flatten()]))[0, 1].item()

    assert agreement(found) > 0.95
    assert agreement(inverse_variance) < 0.6


def test_lift_at_b_zero_leaves_columns_alike():
    b, a = torch.zeros(6, 2, dtype=torch.float64), rand(2, 5, seed=1)
    row = positive(6, seed=2)
    h_b = torch.outer(row, a.square().sum(1))
    found_row, found_col = lift(h_b, torch.zeros(2, 5, dtype=torch.float64), b, a, 1.0)
    torch.testing.assert_close(found_col, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(found_row, row)


def test_pull_back_is_the_dense_diagonal_of_the_hessian():
    b, a, scale = rand(6, 3, seed=1), rand(3, 5, seed=2), 0.7
    pairs = [(positive(6, seed=s), positive(5, seed=s + 1)) for s in (3, 5)]
    total = 2.0 * torch.outer(*pairs[0]) + 0.5 * torch.outer(*pairs[1])
    found = pull_back(b, a, scale, pairs, [2.0, 0.5])
    for got, expected in zip(found, pulled_back_dense(total, b, a, scale), strict=True):
        torch.testing.assert_close(got, expected)

    # and of the true Hessian of 1/2 |s B A - W|^2_H, by automatic differentiation
    def loss(flat):
        return 0.5 * (total * (scale * flat.reshape(6, 3) @ a).square()).sum()

    hessian = torch.autograd.functional.hessian(loss, b.flatten())
    torch.testing.assert_close(found[0].flatten(), hessian.diagonal())


def dense_als(precisions, targets, b, a, sweeps):
    """Literal m x n version: row by row and column by column weighted least squares."""
    total = sum(w * torch.outer(row, col) for w, row, col in precisions)
    pull = sum(w * torch.outer(row, col) * (b_t @ a_t) for (w, row, col), b_t, a_t in targets)
    for _ in range(sweeps):
        b = torch.stack(
            [torch.linalg.solve((a * total[i]) @ a.mT, a @ pull[i]) for i in range(total.shape[0])]
        )
        a = torch.stack(
            [torch.linalg.solve((b.mT * total[:, j]) @ b, b.mT @ pull[:, j]) for j in range(total.shape[1])],
            dim=1,
        )
    return b, a, total, pull / total


def problem(m=20, n=16, tasks=4, r=3):
    precisions, targets = [], []
    for t in range(tasks):
        p = Precision(0.5 + t, positive(m, seed=10 * t), positive(n, seed=10 * t + 1) ** 2)
        precisions.append(p)
        targets.append(Target(p, rand(m, r, seed=10 * t + 2), rand(r, n, seed=10 * t + 3)))
    return precisions, targets


def test_factored_als_is_dense_als():
    precisions, targets = problem()
    start = rand(20, 3, seed=99), rand(3, 16, seed=98)
    b, a, clamped = weighted_als(precisions, targets, start, sweeps=15, tolerance=0.0)
    dense_b, dense_a, _, _ = dense_als(precisions, targets, *start, sweeps=15)
    torch.testing.assert_close(b @ a, dense_b @ dense_a, rtol=1e-8, atol=1e-8)
    assert clamped == 0.0


def test_each_sweep_lowers_the_objective_and_beats_the_svd_of_the_weighted_mean():
    precisions, targets = problem()
    start = rand(20, 3, seed=99), rand(3, 16, seed=98)
    values = [
        weighted_objective(precisions, targets, *weighted_als(precisions, targets, start, sweeps=k)[:2])
        for k in range(1, 8)
    ]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values, values[1:], strict=False))
    _, _, total, mean = dense_als(precisions, targets, *start, sweeps=0)
    u, s, vh = torch.linalg.svd(mean, full_matrices=False)
    plain = weighted_objective(precisions, targets, u[:, :3] * s[:3], vh[:3])
    converged = weighted_objective(
        precisions, targets, *weighted_als(precisions, targets, start, sweeps=60)[:2]
    )
    assert converged < plain

    # completing the square: objective + 1/2 |Wbar|^2 = 1/2 |X - Wbar|^2 in the total precision
    b, a = start
    direct = 0.5 * (total * (b @ a - mean).square()).sum() - 0.5 * (total * mean.square()).sum()
    assert weighted_objective(precisions, targets, b, a) == pytest.approx(direct.item())


def test_als_reaches_the_exact_weighted_mean_when_the_rank_allows():
    precisions, targets = problem(m=6, n=5)
    _, _, _, mean = dense_als(precisions, targets, rand(6, 5, seed=1), rand(5, 5, seed=2), sweeps=0)
    b, a, _ = weighted_als(precisions, targets, (rand(6, 5, seed=1), rand(5, 5, seed=2)), sweeps=50)
    torch.testing.assert_close(b @ a, mean, rtol=1e-8, atol=1e-8)


def test_separable_merge_is_the_dense_gradient_matching_at_full_rank():
    updates = [make_update(1, m=5, n=4, r=2), make_update(20, m=5, n=4, r=2, scale=0.5)]
    merged = separable_merge(updates, [1.0, 2.0], 4, 0.3)
    tau, weights = 0.3, (1.0, 2.0)
    curvatures = []
    for u in updates:
        row, col = lift(u.curvature_b, u.curvature_a, u.b, u.a, u.scale)
        curvatures.append(torch.outer(row / row.mean(), col / col.mean()))
    total = tau + sum(w * c for w, c in zip(weights, curvatures, strict=True))
    pull = sum(w * (tau + c) * u.delta() for w, c, u in zip(weights, curvatures, updates, strict=True))
    torch.testing.assert_close(merged.update.delta(), pull / total, rtol=1e-5, atol=1e-6)


def test_separable_merge_of_one_adapter_gives_its_update_back():
    update = make_update(5)
    merged = separable_merge([update], [1.0], 2, 0.3)
    torch.testing.assert_close(merged.update.delta(), update.delta(), rtol=1e-9, atol=1e-9)


def test_a_certain_adapter_wins_where_it_is_certain():
    """Rows 0-2 matter to the first adapter only, rows 3-5 to the second only: each keeps its own rows."""
    first, second = make_update(1, m=6, n=8), make_update(30, m=6, n=8)
    sure = torch.tensor([1e4] * 3 + [1e-4] * 3, dtype=torch.float64)
    rows = []
    for update, weight in ((first, sure), (second, sure.flip(0))):
        h_b, h_a = pull_back(update.b, update.a, update.scale, [(weight, torch.ones(8).double())], [1.0])
        rows.append(update.__class__(update.b, update.a, update.scale, h_b + 1e-9, h_a + 1e-9, 1e-9, 1e-9))
    merged = separable_merge(rows, [1.0, 1.0], 4, 1e-4).update.delta()
    torch.testing.assert_close(merged[:3], first.delta()[:3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(merged[3:], second.delta()[3:], rtol=1e-2, atol=1e-2)


def test_new_factors_get_the_pooled_curvature_and_a_negative_weight_adds_no_certainty():
    updates = [make_update(1), make_update(20)]
    merged = pooled_precision(make_update(40), updates, [1.0, -0.5])
    first = lift_update(updates[0])
    expected = pull_back(merged.b, merged.a, merged.scale, [first], [1.0])
    torch.testing.assert_close(merged.curvature_b, expected[0])
    torch.testing.assert_close(merged.curvature_a, expected[1])
    assert merged.prior_b == pytest.approx(0.01)
    both = pooled_precision(make_update(40), updates, [1.0, 0.5])
    assert (both.precision_b > merged.precision_b).all()
