"""IVON against posteriors that can be computed: a quadratic and Bayesian linear regression."""

import pytest
import torch

from vlora import IVON

F64 = torch.float64
REPLICAS = 200  # independent copies of each problem, to average the sampling noise away


def run(optimizer, loss_fn, steps, burn_in, param, decay=False):
    """Time averages of mean and h after ``burn_in`` steps."""
    totals = [torch.zeros_like(param), torch.zeros_like(param)]
    lr = optimizer.param_groups[0]["lr"]
    for step in range(steps):
        if decay:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.train()
        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        if step >= burn_in:
            totals[0] += optimizer.state[param]["mean"]
            totals[1] += optimizer.state[param]["hess"]
    return [total / (steps - burn_in) for total in totals]


@pytest.mark.parametrize("foreach", [True, False])
def test_time_averaged_hessian_of_a_quadratic_within_2_percent(foreach):
    curvature = torch.tensor([[0.1], [1.0], [5.0]], dtype=F64)
    param = torch.nn.Parameter(torch.zeros(3, REPLICAS, dtype=F64))
    optimizer = IVON(
        [param], lr=0.05, ess=1000, hess_init=0.5, beta2=0.996, weight_decay=0.0, rescale_lr=False, foreach=foreach
    )  # fmt: skip
    _, hess = run(optimizer, lambda: (0.5 * curvature * (param - 1) ** 2).sum(), 3000, 2000, param)
    torch.testing.assert_close(hess.mean(1, keepdim=True), curvature, rtol=0.02, atol=0)


def test_bayesian_linear_regression_equals_the_conjugate_posterior():
    g = torch.Generator().manual_seed(0)
    num, noise_var, prior_precision = 64, 0.25, 8.0
    design = torch.linalg.qr(torch.randn(num, 3, generator=g, dtype=F64)).Q * num**0.5
    design = design * torch.tensor([0.4, 1.0, 2.0], dtype=F64)  # X'X / N = diag(.16, 1, 4)
    target = design @ torch.tensor([1.0, -2.0, 0.5], dtype=F64) + 0.5 * torch.randn(
        num, generator=g, dtype=F64
    )
    precision = num * torch.tensor([0.16, 1.0, 4.0], dtype=F64) / noise_var + prior_precision
    conjugate_mean = design.T @ target / noise_var / precision

    param = torch.nn.Parameter(torch.zeros(3, REPLICAS, dtype=F64))
    optimizer = IVON(
        [param],
        lr=0.1,
        ess=num,
        hess_init=1.0,
        beta2=0.996,
        prior_precision=prior_precision,
        rescale_lr=False,
    )

    def loss():
        return (design @ param - target[:, None]).square().sum() / (2 * noise_var * num)

    mean, hess = run(optimizer, loss, 3000, 2000, param, decay=True)
    found = optimizer.posterior_state(param)
    variance = 1 / (found["ess"] * (hess.mean(1) + found["weight_decay"]))
    torch.testing.assert_close(mean.mean(1), conjugate_mean, rtol=0.01, atol=0)
    torch.testing.assert_close(variance, 1 / precision, rtol=0.02, atol=0)


def test_squared_gradients_find_the_empirical_fisher():
    g = torch.Generator().manual_seed(3)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    param = torch.nn.Parameter(torch.zeros(3, REPLICAS, dtype=F64))
    optimizer = IVON(
        [param], lr=0.0, ess=1e6, hess_init=1.0, beta2=0.99, weight_decay=0.0, hess_approx="gradsq",
        grad_batch_size=8,
    )  # fmt: skip

    def loss():  # per-example gradients are N(0, scale^2), a batch has 8 of them
        examples = torch.randn(8, 3, REPLICAS, generator=g, dtype=F64) * scale[:, None]
        return (examples.mean(0) * param).sum()

    _, hess = run(optimizer, loss, 1200, 800, param)
    torch.testing.assert_close(hess.mean(1), scale**2, rtol=0.02, atol=0)
