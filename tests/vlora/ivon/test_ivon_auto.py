"""``IVON.auto`` and the step of Adam: Adam written out, and settings that follow from the gradients."""

import math

import pytest
import torch
from torch import nn

from vlora import IVON
from vlora.errors import ConfigError, TrainingError
from vlora.ivon.auto import probe_moments, settings_from_moments
from vlora.ivon.defaults import auto_settings
from vlora.ivon.step import update_mean


def test_adams_step_by_hand():
    mean = update_mean(
        torch.tensor([1.0, 1.0]), torch.tensor([0.1, -0.2]), torch.tensor([0.64, 0.0]), step=1, lr=0.5, beta1=0.5,
        weight_decay=3.0, clip_radius=7.0, mean_step="adam", grad_batch_size=16.0,
    )  # fmt: skip
    # .1 / (1 - .5) / sqrt(.64 / 16) = .2 / .2 = 1;  a second moment of zero meets the trust region
    assert mean.tolist() == pytest.approx([1 - 0.5 * 1.0, 1 + 0.5 * 7.0])


@pytest.mark.parametrize("foreach", [True, False])
def test_without_noise_the_mean_moves_as_under_adam(foreach):
    """Adam written out, its second moment started at h / b and not corrected; draws are too narrow to matter."""
    torch.manual_seed(0)
    data, target = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    param = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = IVON(
        [param], lr=0.01, ess=1e18, hess_init=4.0, weight_decay=0.0, beta2=0.99, hess_approx="gradsq",
        grad_batch_size=8.0, mean_step="adam", foreach=foreach,
    )  # fmt: skip
    theta, first, second = torch.zeros(6, dtype=torch.float64), 0.0, torch.full((6,), 4.0 / 8.0).double()
    for step in range(40):
        rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
        optimizer.train()
        optimizer.zero_grad()
        (data[rows] @ param - target[rows]).square().mean().backward()
        optimizer.step()
        grad = 2 * data[rows].T @ (data[rows] @ theta - target[rows]) / 8
        first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad**2
        theta = theta - 0.01 * first / (1 - 0.9 ** (step + 1)) / (second.sqrt() + 1e-8)
    assert torch.allclose(param.detach(), theta, rtol=1e-6, atol=1e-8)


def test_moments_scale_with_the_batch_and_leave_everything_as_it_was():
    weight, unused = nn.Parameter(torch.full((5,), 0.3)), nn.Parameter(torch.zeros(2))
    generator = torch.Generator().manual_seed(0)

    def loss_of(rows: int):
        def loss():
            inputs, noise = torch.randn(rows, 5, generator=generator), torch.randn(rows, generator=generator)
            return 0.5 * (inputs @ (weight - 0.3) - 2 * noise).square().mean()

        return loss

    for rows in (1, 16):
        moments = probe_moments([weight, unused], loss_of(rows), std=1e-6, num_batches=3000, batch_size=rows)
        assert moments[weight] == pytest.approx(4.0, rel=0.06)  # E[x^2] Var(2 y)
        assert moments[unused] == 0.0
    assert weight.tolist() == [pytest.approx(0.3)] * 5 and weight.grad is None


def test_every_tensor_starts_at_its_own_moment():
    small, large = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(100))
    generator = torch.Generator().manual_seed(0)

    def loss():
        noise = torch.randn(2, 100, generator=generator)
        return 0.1 * (noise[0] * small).sum() + 10 * (noise[1] * large).sum()

    optimizer = IVON.auto([small, large], loss, num_steps=100, grad_batch_size=4)
    optimizer.train()
    starts = [optimizer.state[param]["hess"][0].item() for param in (small, large)]
    assert starts == [pytest.approx(0.04, rel=0.2), pytest.approx(400, rel=0.2)]
    group = optimizer.param_groups[0]
    assert group["hess_init"] == pytest.approx(sum(starts) / 2, rel=1e-5)
    assert group["beta2"] == 0.95 and group["noise_warmup"] == 100
    # the draw of an average entry has the first standard deviation, and no entry is wider than sqrt(3) times it
    assert large.detach().std().item() < 1e-3 < small.detach().std().item() < 3**0.5 * 1.2e-3


def test_a_step_is_too_late_for_starts():
    param = nn.Parameter(torch.zeros(3))
    optimizer = IVON([param], lr=0.1, ess=10.0)
    optimizer.train()
    param.sum().backward()
    optimizer.step()
    with pytest.raises(TrainingError, match="set_hess_init came after a step"):
        optimizer.set_hess_init({param: 1.0})


def test_given_settings_win_and_fix_the_noise():
    free = auto_settings(200, second_moment=1e-3, grad_batch_size=16, width=384)
    assert (free.lr, free.ess, free.noise_cost, free.mean_step) == (1e-3, None, 0.03, "adam")
    assert auto_settings(200, second_moment=1e-3, grad_batch_size=16, width=4096).lr == pytest.approx(
        2.8125e-4
    )
    fixed = auto_settings(200, second_moment=1e-3, grad_batch_size=16, width=384, ess=1e6, init_std=0.02)
    assert fixed.noise_cost is None and fixed.weight_decay == pytest.approx(5e-4)
    assert fixed.optimizer_kwargs()["prior_precision"] == pytest.approx(500.0)
    assert "weight_decay" not in fixed.optimizer_kwargs()
    wide = auto_settings(
        200, second_moment=1e-3, grad_batch_size=16, width=384, weight_decay=1e-3, init_std=0.02
    )
    assert wide.first_std == pytest.approx(0.02)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_newton_step_in_parameter_units_does_not_depend_on_the_scale_of_the_loss(scale):
    """Loss times c means gradients times c and h times c^2; the largest step of an entry stays as it is."""
    moment = 3e-3 * scale**2
    settings = auto_settings(200, second_moment=moment, grad_batch_size=16, width=384, mean_step="newton")
    assert settings.lr * settings.clip_radius == pytest.approx(2e-3)
    typical = 0.25 * math.sqrt(moment / 16)
    assert settings.lr * typical / (1.5 * moment) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"second_moment": 0.0}, "is any parameter connected to the loss"),
        ({"second_moment": math.nan}, "measured a mean squared gradient of nan"),
        ({"init_std": 0.0}, "init_std and max_std must be > 0"),
        ({"max_std_ratio": 1.0}, "max_std_ratio must be > 1"),
    ],
)
def test_impossible_numbers_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        auto_settings(**{"num_steps": 10, "second_moment": 1.0, "grad_batch_size": 4, "width": 8, **settings})


def test_the_line_for_the_log_says_what_was_chosen():
    moments = {nn.Parameter(torch.zeros(8, 384)): 1e-3, nn.Parameter(torch.zeros(384, 8)): 3e-3}
    words = settings_from_moments(moments, 500, 16.0).describe()
    assert words == (
        "ivon: adam step with lr 0.001, noise may cost 0.03 nats (std from 0.001 to at most 0.1), h by gradsq of 16 "
        "examples from 0.002, beta2 0.99"
    )
