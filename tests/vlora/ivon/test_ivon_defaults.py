"""Hyper-parameters for short runs."""

import math

import pytest
import torch

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.defaults import short_run_defaults


def test_reproduces_the_closed_world_settings():
    found = short_run_defaults(num_examples=200, num_steps=200)
    assert found.ess == 2e4
    assert found.first_std == pytest.approx(0.02)
    assert 1 / math.sqrt(found.ess * found.weight_decay) == pytest.approx(0.1)
    assert found.weight_decay == pytest.approx(100 / found.ess)
    assert found.lr * (found.hess_init + found.weight_decay) * found.clip_radius == pytest.approx(5e-3)
    assert found.lr * (found.hess_init + found.weight_decay) == pytest.approx(5 / (found.ess * 0.02**2))
    assert found.beta2 == pytest.approx(0.975)
    assert (found.lr, found.beta1) == (5.0, 0.9)


def test_small_data_has_a_floor_and_short_runs_too():
    assert short_run_defaults(5, 3).ess == 1e4
    assert short_run_defaults(5, 3).beta2 == 0.5


@pytest.mark.parametrize(
    "given",
    [
        {"ess": 1e6}, {"weight_decay": 1e-3}, {"hess_init": 2.0}, {"clip_radius": 0.3}, {"beta2": 0.99}, {"lr": 1.0},
        {"init_std": 0.01, "ess": 5e4}, {"weight_decay": 0.0}, {"beta1": 0.5},
    ],
)  # fmt: skip
def test_given_values_win_and_the_rest_follows(given):
    found = short_run_defaults(300, 100, **given)
    for key, value in given.items():
        assert getattr(found, key) == pytest.approx(value)
    if "clip_radius" not in given:
        assert found.lr * (found.hess_init + found.weight_decay) * found.clip_radius == pytest.approx(5e-3)
    if "hess_init" not in given:
        assert found.first_std == pytest.approx(given.get("init_std", 0.02))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_examples": 0}, "num_examples must be >= 1"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"init_std": 0.0}, "init_std must be > 0"),
        ({"max_std_ratio": 1.0}, "max_std_ratio must be > 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"ess": 0}, "ess must be > 0"),
        ({"num_steps": "10"}, "got '10', which is no number but str"),
        ({"weight_decay": 1.0}, "prior narrower than init_std=0.02"),
    ],
)
def test_impossible_values_are_refused(args, message):
    with pytest.raises(ConfigError, match=message):
        short_run_defaults(**{"num_examples": 100, "num_steps": 100, **args})


def test_ivon_takes_them_and_draws_with_that_width():
    param = torch.nn.Parameter(torch.zeros(100_000))
    settings = short_run_defaults(100, 50)
    optimizer = IVON([param], **settings.optimizer_kwargs())
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(settings.weight_decay)
    optimizer.train()
    assert param.detach().std().item() == pytest.approx(0.02, rel=0.01)
    param.grad = torch.full_like(param, 1e3)
    optimizer.step()
    assert param.detach().abs().max().item() == pytest.approx(5e-3)
