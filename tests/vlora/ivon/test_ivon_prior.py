"""The learned prior: its closed form, its fixed point on a model whose evidence is known, and its place in IVON."""

import math

import pytest
import torch
from ivon_problems import make, one_step, same, through_disk, weights

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.groups import step_settings
from vlora.ivon.prior import bounded_weight_decay, empirical_bayes_precision
from vlora.ivon.step import ivon_step

LEARNED = {"prior": "empirical_bayes", "prior_update_every": 1}


def evidence_optimum(estimates, noise_precision):
    """p that maximises sum log N(estimate; 0, 1/p + 1/noise_precision), on a fine grid and refined by its ends."""
    low, high = 1e-3, 1e5
    for _ in range(6):
        grid = torch.logspace(math.log10(low), math.log10(high), 200, dtype=torch.float64)
        total = 1 / grid[:, None] + 1 / noise_precision
        best = int((-0.5 * (estimates.double() ** 2 / total + total.log())).sum(1).argmax())
        low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, 199)].item()
    return math.sqrt(low * high)


def test_the_closed_form_minimises_the_divergence_from_the_posterior():
    mean, variance = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    best = empirical_bayes_precision(mean, variance)

    def divergence(p):
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.full_like(mean, p**-0.5))
        posterior = torch.distributions.Normal(mean, variance.sqrt())
        return torch.distributions.kl_divergence(posterior, prior).sum().item()

    assert all(divergence(best) < divergence(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))
    draws = mean + variance.sqrt() * torch.randn(20_000, 5, 3)
    assert draws.square().mean().item() == pytest.approx(1 / best, rel=0.02)


@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_the_fixed_point_is_the_evidence_optimum_of_a_conjugate_model(spread):
    """Loss 1/2 h (theta - estimate)^2 per example, N examples: posterior and evidence are Gaussian and exact."""
    count, h = 50, torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    estimates = (spread**2 + 1 / (count * h)).sqrt() * torch.randn(
        400, generator=torch.Generator().manual_seed(1)
    )
    decay = 0.5
    for _ in range(500):
        variance = 1 / (count * (h + decay))
        decay = empirical_bayes_precision(h * estimates / (h + decay), variance) / count
    assert count * decay == pytest.approx(evidence_optimum(estimates, count * h), rel=1e-3)
    assert count * decay == pytest.approx(spread**-2, rel=0.25)  # what the estimates were drawn from


def test_ivon_finds_the_evidence_optimum_of_every_tensor():
    generator, count = torch.Generator().manual_seed(3), 50.0
    spreads, sizes = (0.2, 1.0), (600, 400)
    estimates = [
        math.sqrt(s * s + 1 / count) * torch.randn(n, generator=generator)
        for s, n in zip(spreads, sizes, strict=True)
    ]
    params = [torch.nn.Parameter(torch.zeros(n)) for n in sizes]
    optimizer = IVON(params, lr=0.2, ess=count, hess_init=1.0, beta2=0.998, weight_decay=0.1, **LEARNED)
    for step in range(900):
        if step == 600:
            for group in optimizer.param_groups:
                group["lr"] = 0.02
        optimizer.train()
        for param, estimate in zip(params, estimates, strict=True):
            param.grad = (param - estimate).detach()
        optimizer.step()
    for group, estimate in zip(optimizer.param_groups, estimates, strict=True):
        expected = evidence_optimum(estimate, torch.tensor(count))
        assert count * group["weight_decay"] == pytest.approx(expected, rel=0.1)
        state = optimizer.posterior_state(group["params"][0])
        shrunk = estimate / (1 + group["weight_decay"])
        assert (state["mean"] - shrunk).abs().mean() < 0.05 * estimate.abs().mean()


def test_every_tensor_gets_its_own_group_and_the_same_draw_as_before():
    model, together = make()
    other, apart = make(**LEARNED)
    assert [len(group["params"]) for group in apart.param_groups] == [1, 1, 1, 1]
    together.train()
    apart.train()
    assert same(weights(model), weights(other))


def test_the_prior_changes_every_so_many_steps_and_the_learning_rate_never():
    model, optimizer = make(**{**LEARNED, "prior_update_every": 3})
    rates = [step_settings(group)["lr"] for group in optimizer.param_groups]
    seen = []
    for step in range(7):
        one_step(model, optimizer, step)
        seen.append([group["weight_decay"] for group in optimizer.param_groups])
    assert seen[0] == seen[1] == [1e-4] * 4
    assert seen[2] != seen[1] and seen[2] == seen[3] == seen[4] and seen[5] != seen[4] and seen[6] == seen[5]
    assert len(set(seen[2])) == 4
    assert [step_settings(group)["lr"] for group in optimizer.param_groups] == rates


def test_an_update_is_the_formula_applied_to_the_new_posterior():
    model, optimizer = make(**LEARNED)
    for step in range(4):
        before = [group["weight_decay"] for group in optimizer.param_groups]
        one_step(model, optimizer, step)
        for decay, group in zip(before, optimizer.param_groups, strict=True):
            state = optimizer.posterior_state(group["params"][0])
            variance = 1 / (1000.0 * (state["hess"] + decay))
            square = state["mean"].square().sum() + variance.sum()
            expected = state["mean"].numel() / square.item() / 1000.0
            assert group["weight_decay"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"hess_approx": "gradsq", "grad_batch_size": 12}, {"clip_radius": 0.01}], ids=str
)
@pytest.mark.parametrize("pull", [True, False])
def test_both_paths_agree_with_and_without_pull(settings, pull):
    runs = []
    for foreach in (True, False):
        model, optimizer = make(foreach=foreach, prior_pull=pull, weight_decay=0.3, **LEARNED, **settings)
        for step in range(12):
            one_step(model, optimizer, step)
        runs.append((weights(model), [group["weight_decay"] for group in optimizer.param_groups]))
    for first, second in zip(runs[0][0], runs[1][0], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-4)


def test_without_pull_the_mean_feels_the_prior_only_through_the_step_length():
    tensors = [torch.randn(6, dtype=torch.float64) for _ in range(2)]
    mean, grad, hess = tensors[0], tensors[1], torch.rand(6, dtype=torch.float64)
    common = {"step": 1, "lr": 0.1, "ess": 10.0, "weight_decay": 0.4, "beta1": 0.9, "beta2": 1 - 1e-12}
    args = (mean, torch.zeros(6, dtype=torch.float64), hess, grad, torch.zeros(6, dtype=torch.float64))
    pulled, free = ivon_step(*args, **common)[0], ivon_step(*args, **common, prior_pull=False)[0]
    torch.testing.assert_close(free, mean - 0.1 * grad / (hess + 0.4))
    torch.testing.assert_close(pulled, mean - 0.1 * (grad + 0.4 * mean) / (hess + 0.4))


def test_a_negative_hessian_never_loses_its_positive_precision():
    hess = torch.tensor([-0.09, 0.0, 1.0])
    for proposed in (0.0, 1e-6, 0.05, 0.0899, 0.5):
        decay = bounded_weight_decay(proposed, hess=hess, weight_decay=0.1)
        assert decay >= proposed and float((hess + decay).min()) >= 0.1 * 0.01 * (1 - 1e-4)
    assert bounded_weight_decay(1e-3, hess=hess.clamp_min(0.0), weight_decay=2e-3) == 1e-3
    model, optimizer = make(hess_init=0.01, beta2=0.5, ess=30.0, lr=0.5, **LEARNED)
    for step in range(60):  # one-draw Price estimates with a short memory: h goes well below zero
        one_step(model, optimizer, step)
    states = [optimizer.posterior_state(p) for p in model.parameters()]
    assert all(bool((s["hess"] + s["weight_decay"] > 0).all()) for s in states)


def test_a_checkpoint_goes_on_bit_for_bit():
    model, optimizer = make(**{**LEARNED, "prior_update_every": 2})
    for step in range(5):
        one_step(model, optimizer, step)
    copied, resumed = make(**{**LEARNED, "prior_update_every": 2})
    copied.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    for step in range(5, 9):
        one_step(model, optimizer, step)
        one_step(copied, resumed, step)
    assert same(weights(model), weights(copied))
    priors = [[group["weight_decay"] for group in o.param_groups] for o in (optimizer, resumed)]
    assert priors[0] == priors[1]


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="prior must be one of fixed, empirical_bayes, got 'flat'"):
        make(prior="flat")
    with pytest.raises(ConfigError, match="starts from a weight_decay above 0, got 0"):
        make(weight_decay=0.0, **LEARNED)
    with pytest.raises(ConfigError, match="prior_update_every must be a whole number >= 1, got 0"):
        make(prior_update_every=0)
    with pytest.raises(TypeError, match="ordered collections"):
        IVON([{"params": {torch.nn.Parameter(torch.zeros(2))}}], lr=0.1, ess=10.0, prior="empirical_bayes")
