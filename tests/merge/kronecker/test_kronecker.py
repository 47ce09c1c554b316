"""Gradient matching with input Grams against the dense normal equations."""

from dataclasses import replace

import pytest
import torch
from merge_cases import gram, make_update

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.kronecker.closed_form import kronecker_merge
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.task_arithmetic import task_arithmetic


def dense_solution(updates, weights, tau):
    """Minimiser of the linearised objective, with n x n and m x n matrices written out."""
    n = updates[0].a.shape[1]
    unit = [u.input_gram * n / torch.trace(u.input_gram) for u in updates]
    identity = torch.eye(n, dtype=torch.float64)
    total = tau * identity + sum(w * g for w, g in zip(weights, unit, strict=True))
    pull = sum(w * u.delta() @ (g + tau * identity) for w, g, u in zip(weights, unit, updates, strict=True))
    return pull @ torch.linalg.inv(total), total


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0), (1.0, -0.01)])
def test_closed_form_solves_the_dense_normal_equations(weights):
    updates = [make_update(1, scale=3.0), make_update(20, r=3, scale=0.25)]
    merged, clamped = kronecker_merge(updates, list(weights), 0.3)
    expected, _ = dense_solution(updates, weights, 0.3)
    torch.testing.assert_close(merged.delta(), expected, rtol=1e-9, atol=1e-9)
    assert clamped == 0.0
    assert merged.rank == 5


def test_b_is_unchanged_up_to_its_weight():
    updates = [make_update(1, scale=3.0), make_update(20, scale=0.25)]
    merged, _ = kronecker_merge(updates, [2.0, 1.0], 0.3)
    torch.testing.assert_close(merged.b, torch.cat([6.0 * updates[0].b, 0.25 * updates[1].b], dim=1))


def test_it_is_the_joint_minimiser_of_two_quadratic_tasks():
    """l_t(W) = 1/2 tr((W - M_t) G_t (W - M_t)^T), each task fine-tuned from 0 under 1/2 tau |W|^2."""
    n, m, tau = 6, 4, 0.3
    grams = [gram(n, 1), gram(n, 2)]
    grams = [g * n / torch.trace(g) for g in grams]
    identity = torch.eye(n, dtype=torch.float64)
    targets = [make_update(3, m, n, r=4).delta(), make_update(4, m, n, r=4).delta()]
    tuned = [t @ g @ torch.linalg.inv(g + tau * identity) for t, g in zip(targets, grams, strict=True)]
    updates = [
        replace(make_update(0, m, n, r=4), b=torch.eye(m, dtype=torch.float64), a=w, scale=1.0, input_gram=g)
        for w, g in zip(tuned, grams, strict=True)
    ]
    joint = sum(t @ g for t, g in zip(targets, grams, strict=True)) @ torch.linalg.inv(
        sum(grams) + tau * identity
    )
    merged = gradient_matching(updates, [1.0, 1.0], rank="lossless", tau=tau, curvature="kronecker")
    torch.testing.assert_close(merged.update.delta(), joint, rtol=1e-9, atol=1e-9)
    plain = task_arithmetic(updates, [1.0, 1.0], rank="lossless").update.delta()
    assert (plain - joint).norm() > 0.1 * joint.norm()


def test_the_scale_of_a_gram_does_not_matter():
    updates = [make_update(1), make_update(20)]
    louder = [replace(updates[0], input_gram=1e6 * updates[0].input_gram), updates[1]]
    first, second = (kronecker_merge(u, [1.0, 1.0], 0.3)[0].delta() for u in (updates, louder))
    torch.testing.assert_close(first, second)


def test_a_large_prior_gives_the_sum_and_none_gives_regmean():
    updates = [make_update(1), make_update(20)]
    plain = task_arithmetic(updates, [1.0, 1.0], rank="lossless").update.delta()
    torch.testing.assert_close(
        kronecker_merge(updates, [1.0, 1.0], 1e9)[0].delta(), plain, rtol=1e-6, atol=1e-6
    )
    regmean, _ = dense_solution(updates, (1.0, 1.0), 0.0)
    torch.testing.assert_close(
        kronecker_merge(updates, [1.0, 1.0], 1e-9)[0].delta(), regmean, rtol=1e-4, atol=1e-4
    )


def test_recompression_is_the_best_of_its_rank_in_the_total_metric():
    updates = [make_update(1), make_update(20)]
    merged = gradient_matching(updates, [1.0, 1.0], rank=2, tau=0.3, curvature="kronecker")
    full, total = dense_solution(updates, (1.0, 1.0), 0.3)
    outputs = [u.output_gram * 7 / torch.trace(u.output_gram) for u in updates]
    s = sum(outputs) + 0.3 * torch.eye(7, dtype=torch.float64)
    left, right = torch.linalg.cholesky(s), torch.linalg.cholesky(total)
    u, values, vh = torch.linalg.svd(left.mT @ full @ right)
    best = torch.linalg.inv(left.mT) @ (u[:, :2] * values[:2]) @ vh[:2] @ torch.linalg.inv(right)
    torch.testing.assert_close(merged.update.delta(), best, rtol=1e-7, atol=1e-7)
    kept = values[:2].square().sum() / values.square().sum()
    assert merged.report["retained_energy"] == pytest.approx(kept.item())
    assert merged.report["exact"] is False
    assert merged.update.scale == 1.0
    assert merged.update.precision_b.min() > 0


def test_variance_of_a_moves_with_it():
    """Var(A M) of independent entries is Var(A) (M o M); checked against many draws of A."""
    updates = [make_update(1), make_update(20)]
    merged, _ = kronecker_merge(updates, [1.0, 1.0], 0.3)
    noise = torch.randn(20000, 2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = [normalised_gram(u.input_gram, "x") for u in updates]
    identity = torch.eye(9, dtype=torch.float64)
    mixing = (unit[0] + 0.3 * identity) @ torch.linalg.inv(0.3 * identity + unit[0] + unit[1])
    draws = (updates[0].a + noise * updates[0].precision_a.rsqrt()) @ mixing
    torch.testing.assert_close(draws.mean(0), merged.a[:2], rtol=0.1, atol=0.05)
    torch.testing.assert_close(draws.var(0), 1 / merged.precision_a[:2], rtol=0.06, atol=0)


def test_negative_weights_are_clamped_and_reported():
    updates = [make_update(1), make_update(20)]
    merged, clamped = kronecker_merge(updates, [1.0, -5.0], 0.3)
    assert 0 < clamped <= 1
    assert torch.isfinite(merged.delta()).all()
    settings = {"rank": "lossless", "curvature": "kronecker", "negative": "remove"}
    report = gradient_matching(updates, [1.0, -5.0], **settings).report
    assert report["clamped_fraction"] == clamped


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(3, 4), "square matrix, got shape"),
        (torch.full((9, 9), float("nan")), "not finite and positive"),
        (-torch.eye(9), "not finite and positive"),
        (torch.eye(8), "has 8 inputs, its A has 9"),
    ],
)
def test_a_bad_gram_is_named(bad, message):
    updates = [make_update(1), replace(make_update(20), input_gram=bad.double())]
    with pytest.raises(IncompatibleAdaptersError, match=f"adapter20.*{message}"):
        kronecker_merge(updates, [1.0, 1.0], 0.3)


def test_a_gram_of_zeros_stays_zero():
    assert not normalised_gram(torch.zeros(3, 3), "x").any()
    updates = [make_update(1), replace(make_update(20), input_gram=torch.zeros(9, 9, dtype=torch.float64))]
    assert torch.isfinite(kronecker_merge(updates, [1.0, 1.0], 0.3)[0].delta()).all()
