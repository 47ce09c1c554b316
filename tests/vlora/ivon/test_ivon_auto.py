"""``IVON.auto`` and the step of Adam: torch's Adam where there is no noise, and settings from the shape of a run."""

from typing import Any

import pytest
import torch
from torch import nn

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.defaults import auto_settings, default_lr, median_width
from vlora.ivon.step import corrected_decay, update_mean


def test_adams_step_by_hand():
    mean = update_mean(
        torch.tensor([1.0, 1.0]), torch.tensor([0.1, -0.2]), torch.tensor([0.64, 0.0]), step=2, lr=0.5, beta1=0.5,
        weight_decay=3.0, clip_radius=7.0, mean_step="adam", grad_batch_size=16.0,
    )  # fmt: skip
    # .1 / (1 - .25) / sqrt(.64 / 16) = .1333 / .2; a second moment of zero meets the trust region
    assert mean.tolist() == pytest.approx([1 - 0.5 * 0.1 / 0.75 / 0.2, 1 + 0.5 * 7.0])


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.999])
def test_a_corrected_average_is_adams_and_forgets_its_start(beta2):
    values, average = [3.0, 1.0, 4.0, 1.0, 5.0], 1e6
    for step, value in enumerate(values, 1):
        keep = corrected_decay(beta2, step)
        average = keep * average + (1 - keep) * value
        weights = [beta2 ** (step - i) for i in range(1, step + 1)]
        adams = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert average == pytest.approx(adams, rel=1e-9)


@pytest.mark.parametrize("foreach", [True, False])
def test_without_noise_the_mean_moves_as_under_torchs_adam(foreach):
    """Same learning rate, same decays, h from next to zero; draws too narrow to matter."""
    torch.manual_seed(0)
    data, target = torch.randn(64, 6, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    ours, theirs = (nn.Parameter(torch.zeros(6, dtype=torch.float64)) for _ in range(2))
    optimizer = IVON.auto(
        [ours], num_steps=500, grad_batch_size=8.0, lr=0.01, ess=1e18, init_std=1e-12, foreach=foreach,
        max_grad_norm=None,
    )  # fmt: skip
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.999))
    for step in range(40):
        rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
        for param, opt in ((ours, optimizer), (theirs, adam)):
            if opt is optimizer:
                optimizer.train()
            opt.zero_grad()
            (data[rows] @ param - target[rows]).square().mean().backward()
            opt.step()
    assert torch.allclose(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-8)
    second = adam.state[theirs]["exp_avg_sq"] / (1 - 0.999**40)
    assert torch.allclose(
        optimizer.state[ours]["hess"], 8.0 * second, rtol=1e-6
    )  # b times Adam's second moment


def test_the_first_draws_have_the_first_width_whatever_h_starts_at():
    for hess_init in (1e-20, 1.0):
        param = nn.Parameter(torch.zeros(50_000))
        optimizer = IVON.auto([param], num_steps=100, grad_batch_size=4, hess_init=hess_init)
        optimizer.train()
        assert param.detach().std().item() == pytest.approx(1e-3, rel=0.02)


def test_given_settings_win_and_fix_the_noise():
    free = auto_settings(200, grad_batch_size=16, width=384)
    assert (free.lr, free.ess, free.noise_cost, free.mean_step) == (0.5 / 384, None, 0.01, "adam")
    fixed = auto_settings(200, grad_batch_size=16, width=384, ess=1e6)
    assert fixed.noise_cost is None and fixed.first_std == pytest.approx(0.02)
    assert fixed.optimizer_kwargs()["prior_precision"] == pytest.approx(2500.0)
    assert "weight_decay" not in fixed.optimizer_kwargs()
    assert auto_settings(20, grad_batch_size=16, width=384, beta2=0.9, lr=1.0).beta2 == 0.9
    params = [nn.Parameter(torch.zeros(2))]
    group = IVON.auto(params, num_steps=50, grad_batch_size=4, lr=0.5, skip_nonfinite=True).param_groups[0]
    assert (group["lr"], group["beta2"], group["noise_warmup"]) == (0.5, 0.999, 50)
    assert group["skip_nonfinite"] is True


@pytest.mark.parametrize(
    ("width", "steps", "lr"),
    [
        (4096, 10_000, 1.2207e-4),
        (4096, 200, 1.2207e-4),
        (384, 100, 1.8414e-3),  # sqrt(2) times
        (384, 50, 2.6042e-3),
        (384, 5, 2.6042e-3),  # at most twice
        (128, 240, 3.9063e-3),
        (64, 1000, 7.8125e-3),
        (64, 50, 1e-2),
        (1, 1000, 1e-2),
    ],
)
def test_the_default_rate_falls_with_width_and_rises_for_short_runs(width, steps, lr):
    assert default_lr(width, steps) == pytest.approx(lr, rel=1e-4)
    assert auto_settings(steps, grad_batch_size=4, width=width).lr == default_lr(width, steps)


def test_the_width_is_that_of_the_layers():
    tensors = [nn.Parameter(torch.zeros(*shape)) for shape in ((8, 384), (384, 8), (8, 384), (1536, 8), (3,))]
    frozen = nn.Parameter(torch.zeros(9999), requires_grad=False)
    assert median_width([*tensors, frozen]) == 384
    assert median_width([{"params": tensors[:1]}, {"params": []}]) == 384
    assert median_width([("name", tensors[3])]) == 1536
    assert median_width([]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"init_std": 0.0}, "init_std must be > 0"),
        ({"max_std": float("nan")}, "max_std must be > 0 and finite, got nan"),
        ({"ess": 0}, "IVON's ess must be > 0 and finite, got 0"),
        ({"ess": "1e4"}, "got '1e4', which is no number but str"),
        ({"lr": "a"}, "lr must be >= 0 and finite, got 'a'"),
        ({"num_steps": None}, "num_steps must be >= 1 and finite, got None, which is no number"),
        ({"num_steps": float("inf")}, "num_steps must be >= 1 and finite, got inf"),
        ({"grad_batch_size": "8"}, "grad_batch_size must be > 0 and finite, got '8'"),
        ({"max_std_ratio": 1.0}, "max_std_ratio must be > 1"),
        ({"weight_decay": 0.1}, "weight_decay is given, so ess must be given too"),
        ({"noise_cost": None}, "give ess, or noise_cost to set it during the run"),
    ],
)
def test_impossible_numbers_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        auto_settings(**{"num_steps": 10, "grad_batch_size": 4, "width": 8, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"num_steps must be .*, got None, .*; give the optimizer steps .* \(iterable\) need max_steps"),
        (
            {"num_steps": -1},
            r"num_steps must be >= 1 and finite, got -1; give",
        ),  # what max_steps is if not set
        ({"num_steps": 9, "grad_batch_size": None}, "got None, .*; give the examples of one optimizer step"),
    ],
)
def test_what_only_the_caller_knows_is_asked_for_with_the_cure(settings, message):
    with pytest.raises(ConfigError, match=message):
        IVON.auto(nn.Linear(2, 2), **{"grad_batch_size": 4, **settings})


def test_the_line_for_the_log_says_what_was_chosen():
    assert auto_settings(500, grad_batch_size=16.0, width=384).describe() == (
        "ivon: adam step with lr 0.0013, gradient norm at most 1, noise may cost 0.01 nats from step 500 on (std from "
        "0.001 to at most 0.1, no entry wider than 1.73 times that), h by gradsq of 16 examples, betas 0.9 and 0.999"
    )
    assert (
        "ess 1e+06, prior precision 2.5e+03, first std 0.02"
        in auto_settings(5, grad_batch_size=1, width=8, ess=1e6).describe()
    )


def test_the_optimizer_tells_its_settings():
    params = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "lr": 0.5},
        {"params": params[2:]},
        {"params": []},
    ]
    optimizer = IVON.auto(groups, num_steps=500, grad_batch_size=16)
    first, second = optimizer.describe().splitlines()
    expected = auto_settings(500, grad_batch_size=16.0, width=4).describe()
    assert (first, second) == tuple(
        expected.replace("lr 0.01", lr) + ", std 0.001 now" for lr in ("lr 0.01", "lr 0.5")
    )
    fixed = IVON([params[0]], lr=1.0, ess=1e4, hess_init=0.24, weight_decay=0.01)
    assert (
        fixed.describe()
        == "ivon: newton step with lr 1, ess 1e+04, prior precision 100, first std 0.02, h by price, "
        "betas 0.9 and 0.99999"
    )


def test_a_schedule_does_not_hide_the_rate_and_a_learned_prior_stays_one_line():
    optimizer = IVON(
        [nn.Parameter(torch.zeros(4))], lr=0.5, ess=1e4, hess_init=0.24, weight_decay=0.01, clip_radius=3
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    line = optimizer.describe()
    assert "with lr 0.5, clip_radius 3," in line and line.endswith("0.99999, lr 0 now")
    optimizer.train()
    optimizer.param_groups[0]["params"][0].grad = torch.ones(4)
    optimizer.step()
    schedule.step()
    assert optimizer.describe().endswith(", lr 0.125 now")
    params = [nn.Parameter(torch.full((4,), float(n))) for n in range(3)]
    learned = IVON(params, lr=0.5, ess=1e4, weight_decay=0.01, prior="empirical_bayes", prior_update_every=1)
    learned.train()
    for param in params:
        param.grad = torch.ones(4)
    learned.step()
    assert len({group["weight_decay"] for group in learned.param_groups}) == 3
    assert len(learned.describe().splitlines()) == 1


def test_a_model_or_nothing_is_taken_too():
    """Nothing: transformers calls ``IVON.auto()(model, **kwargs)`` where it builds the optimizer."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    factory: Any = IVON.auto
    for optimizer in (
        IVON.auto(model, num_steps=5, grad_batch_size=4),
        factory()(model, num_steps=5, grad_batch_size=4),
    ):
        assert optimizer.param_groups[0]["params"] == list(model[1].parameters())
    with pytest.raises(ConfigError, match="num_steps must be >= 1 and finite, got None"):
        IVON.auto(model)
