"""The controller of the noise: its formulas by hand, what it measures, and that it gets where it should."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.noise import NoiseTally, derive_ess, next_std, noise_target, std_limit

SQUARES = {"hess_approx": "gradsq", "grad_batch_size": 1.0}


def quadratic_run(*, steps: int = 400, entries: int = 1000, **settings) -> tuple[IVON, nn.Parameter]:
    """Loss 1/2 sum_i d_i theta_i^2 with curvatures d from 1 to 3; its noise cost is 1/2 sum_i d_i std_i^2 exactly."""
    curvature = torch.linspace(1.0, 3.0, entries)
    param = nn.Parameter(torch.zeros(entries))
    options = {"lr": 1e-4, "hess_init": 1e-3, "beta2": 0.99, "mean_step": "adam", **SQUARES, **settings}
    optimizer = IVON([param], **options)
    for _ in range(steps):
        optimizer.train()
        optimizer.zero_grad()
        (0.5 * curvature * param.square()).sum().backward()
        optimizer.step()
    return optimizer, param


def test_an_entry_of_average_h_gets_the_typical_width_and_a_flat_one_the_widest():
    ess, weight_decay = derive_ess(0.02, 5e-3, max_std_ratio=2.0)
    assert 1 / math.sqrt(ess * (5e-3 + weight_decay)) == pytest.approx(0.02)
    assert 1 / math.sqrt(ess * weight_decay) == pytest.approx(0.04)
    with pytest.raises(ConfigError, match="noise_cost needs a positive mean of h, got 0"):
        derive_ess(0.02, 0.0, max_std_ratio=2.0)


def test_the_target_rises_quadratically():
    found = [noise_target(0.04, step=step, noise_warmup=10) for step in (1, 5, 10, 20)]
    assert found == pytest.approx([0.0004, 0.01, 0.04, 0.04])
    assert noise_target(0.04, step=1, noise_warmup=0) == 0.04


def test_noise_stays_within_a_quarter_of_the_way_that_the_mean_can_have_gone():
    group = {"mean_step": "adam", "init_std": 1e-3, "max_std": 0.1, "path": 0.05}
    assert std_limit(group) == pytest.approx(0.0125)
    assert std_limit({**group, "path": 1e-3}) == 1e-3
    assert std_limit({**group, "path": 10.0}) == 0.1
    assert std_limit({**group, "mean_step": "newton"}) == 0.1


def test_what_noise_may_cost_before_anything_is_learned_does_not_widen_it():
    """A loss that noise cannot raise lets the controller widen the draws at its full rate; the limit holds them."""
    param = nn.Parameter(torch.zeros(100))
    optimizer = IVON.auto([param], num_steps=50, grad_batch_size=4, lr=1e-3)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 50)
        optimizer.train()
        optimizer.zero_grad()
        param.grad = torch.randn(100, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    group = optimizer.param_groups[0]
    assert group["path"] == pytest.approx(1e-3 * 25.5)
    assert group["std"] == pytest.approx(0.25 * 1e-3 * 25.5, rel=0.05)


@given(
    std=st.floats(1e-6, 1.0),
    cost=st.floats(-10, 10),
    noise_cost=st.floats(1e-6, 1.0),
    rate=st.floats(1e-4, 0.5),
)
def test_a_step_of_the_controller_is_bounded_and_goes_the_right_way(std, cost, noise_cost, rate):
    new = next_std(std, cost=cost, noise_cost=noise_cost, noise_rate=rate, max_std=10.0)
    assert std * math.exp(-rate) * (1 - 1e-9) <= new <= std * math.exp(rate) * (1 + 1e-9)
    assert (new >= std) == (cost <= noise_cost)
    assert next_std(std, cost=cost, noise_cost=noise_cost, noise_rate=rate, max_std=std / 2) == std / 2


def test_half_the_product_of_noise_and_gradient_is_the_cost_of_a_quadratic():
    """For L = 1/2 theta^T D theta at the mean 0 the product is n^T D n, whatever the draw."""
    torch.manual_seed(0)
    curvature, noise = torch.rand(50), torch.randn(50)
    tally = NoiseTally()
    tally.add_draw(noise[:20], torch.zeros(20), (curvature * noise)[:20])
    tally.add_draw(noise[20:], torch.zeros(30), (curvature * noise)[20:], out=torch.empty(30))
    cost = tally.measured([], []).cost
    assert cost == pytest.approx(float(0.5 * (curvature * noise.square()).sum()), rel=1e-6)
    tally.draws = 4
    assert tally.measured([], []).cost == pytest.approx(cost / 4)


@pytest.mark.parametrize(
    "settings", [{}, {"foreach": False}, {"noise_warmup": 200}, {"state_bits": 8, "min_8bit_size": 1}]
)
def test_the_noise_ends_up_costing_what_it_may(settings):
    optimizer, param = quadratic_run(noise_cost=0.05, init_std=1e-3, noise_rate=0.05, **settings)
    state = optimizer.posterior_state(param)
    variance = 1 / (state["ess"] * (state["hess"] + state["weight_decay"]))
    cost = 0.5 * (torch.linspace(1.0, 3.0, 1000) * variance).sum().item()
    assert cost == pytest.approx(0.05, rel=0.15)


def test_the_paths_agree():
    ends = [quadratic_run(noise_cost=0.05, steps=50, foreach=foreach) for foreach in (True, False)]
    ess = [optimizer.param_groups[0]["ess"] for optimizer, _ in ends]
    assert ess[0] == pytest.approx(ess[1], rel=1e-4)
    assert torch.allclose(ends[0][1], ends[1][1], atol=1e-6)


def test_draws_of_several_contexts_are_averaged():
    """Two contexts a step: the controller sees the mean cost of the two draws, not their sum."""
    param = nn.Parameter(torch.zeros(20_000))
    optimizer = IVON([param], lr=0.0, hess_init=1.0, noise_cost=1.0, init_std=0.01, **SQUARES)
    for _ in range(2):
        with optimizer.sampled_params(train=True):
            (0.5 * param.square().sum()).backward()
    optimizer.step()
    assert optimizer.param_groups[0]["cost_average"] / 0.05 == pytest.approx(0.5 * 20_000 * 1e-4, rel=0.05)


@pytest.mark.parametrize("factor", [1024.0, 1.0])
def test_a_loss_scale_that_is_taken_off_does_not_count_as_cost(factor):
    """As ``GradScaler.unscale_`` does between the contexts and the step."""
    param = nn.Parameter(torch.zeros(20_000))
    optimizer = IVON([param], lr=0.0, hess_init=1.0, noise_cost=1.0, init_std=0.01, **SQUARES)
    with optimizer.sampled_params(train=True):
        (factor * 0.5 * param.square().sum()).backward()
    assert param.grad is not None
    param.grad.div_(factor)
    optimizer.step()
    assert optimizer.param_groups[0]["cost_average"] / 0.05 == pytest.approx(0.5 * 20_000 * 1e-4, rel=0.05)


def test_a_checkpoint_carries_the_controller():
    optimizer, param = quadratic_run(noise_cost=0.05, steps=20)
    other = IVON([nn.Parameter(param.detach().clone())], lr=1e-4, hess_init=1e-3, noise_cost=0.05, **SQUARES)
    other.load_state_dict(optimizer.state_dict())
    keys = ("std", "ess", "weight_decay", "cost_average", "cost_weight", "noise_steps")
    assert [other.param_groups[0][key] for key in keys] == [optimizer.param_groups[0][key] for key in keys]


def test_groups_without_a_cost_keep_their_own_ess():
    params = [nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "noise_cost": None, "ess": 123.0}]
    optimizer = IVON(groups, lr=1e-3, noise_cost=0.01, **SQUARES)
    optimizer.train()
    (params[0].square().sum() + params[1].square().sum()).backward()
    optimizer.step()
    assert optimizer.param_groups[1]["ess"] == 123.0
    assert optimizer.param_groups[0]["noise_steps"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs ess .examples. or noise_cost .nats."),
        ({"noise_cost": 0.1, "ess": 10.0}, "noise_cost sets ess and the prior during training"),
        ({"noise_cost": 0.0, **SQUARES}, "noise_cost must be > 0 and finite, got 0"),
        ({"noise_cost": 0.1, "max_std_ratio": 1.0, **SQUARES}, "max_std_ratio must be > 1"),
        ({"noise_cost": 0.1, "noise_warmup": -1, **SQUARES}, "noise_warmup must be >= 0 and finite, got -1"),
        ({"noise_cost": "a", **SQUARES}, "noise_cost must be > 0 and finite, got 'a'"),
        ({"noise_cost": 0.1}, "noise_cost=0.1 needs an h that is never negative"),
        ({"noise_cost": 0.1, "noise": "per_rank", **SQUARES}, 'noise_cost needs noise="shared"'),
        ({"ess": 1.0, "mean_step": "adam"}, "mean_step=adam needs an h that is never negative"),
        ({"ess": 1.0, "mean_step": "sgd"}, "mean_step must be 'newton' or 'adam', got 'sgd'"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        IVON([nn.Parameter(torch.zeros(3))], lr=0.1, **settings)
