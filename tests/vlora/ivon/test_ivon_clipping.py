"""``max_grad_norm``: torch's clipped Adam where there is no noise; h and the cost of noise see whole gradients."""

import warnings

import pytest
import torch
from torch import nn

from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.clipping import NormWatch
from vlora.ivon.step import clipped_decay, corrected_decay

F64 = torch.float64


def problem():
    """Rows of two tensors' regression, and the loss of some of them; gradient norms from 17 to 95."""
    generator = torch.Generator().manual_seed(0)
    data = 3 * torch.randn(64, 6, dtype=F64, generator=generator)
    target = torch.randn(64, dtype=F64, generator=generator)

    def loss(params, step):
        rows = slice(8 * (step % 8), 8 * (step % 8) + 8)
        return (data[rows] @ params[0] + params[1] - target[rows]).square().mean()

    return loss


def fresh():
    return [nn.Parameter(torch.ones(6, dtype=F64)), nn.Parameter(torch.zeros((), dtype=F64))]


@pytest.mark.parametrize("path", [{"foreach": True}, {"foreach": False}])
def test_without_noise_the_mean_moves_as_under_torchs_adam_with_clipped_gradients(path):
    loss, ours, theirs = problem(), fresh(), fresh()
    settings = {"num_steps": 500, "grad_batch_size": 8.0, "lr": 0.01, "ess": 1e18, "init_std": 1e-12}
    optimizer = IVON.auto(ours, **settings, max_grad_norm=30.0, **path)
    adam, clips, squares = torch.optim.Adam(theirs, lr=0.01), [], []
    for step in range(40):
        optimizer.train()
        optimizer.zero_grad()
        loss(ours, step).backward()
        optimizer.step()
        adam.zero_grad()
        loss(theirs, step).backward()
        squares.append([param.grad.square() for param in theirs])
        norm = nn.utils.clip_grad_norm_(theirs, 30.0).item()
        clips.append(min(1.0, 30.0 / (norm + 1e-6)))
        adam.step()
    assert min(clips) < 0.4 and max(clips) == 1.0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-6, atol=1e-8)
    # h: the mean of whole squares, a step's weight Adam's times c^2
    weights = torch.tensor([0.999 ** (39 - i) * c**2 for i, c in enumerate(clips)], dtype=F64)
    for index, param in enumerate(ours):
        want = 8.0 * sum(w * s[index] for w, s in zip(weights, squares, strict=True)) / weights.sum()
        torch.testing.assert_close(optimizer.state[param]["hess"], want, rtol=1e-6, atol=0)
        assert optimizer.posterior_state(param)["start_weight"] == 0.0


def test_h_and_the_cost_of_noise_see_whole_gradients():
    found = {}
    for limit in (None, 1e-3):
        loss, params = problem(), fresh()
        optimizer = IVON.auto(params, num_steps=100, grad_batch_size=8.0, lr=1e-12, max_grad_norm=limit)
        costs = []
        for step in range(16):
            optimizer.train()
            optimizer.zero_grad()
            loss(params, step).backward()
            optimizer.step()
            costs.append(optimizer.param_groups[0]["cost_average"])
        h = torch.cat([optimizer.state[param]["hess"].flatten() for param in params])
        found[limit] = costs[0], h
    assert found[1e-3][0] == found[None][0] != 0  # of the same draw
    assert 0.5 < (found[1e-3][1] / found[None][1]).median() < 1.5


def test_groups_that_are_not_cut_and_several_draws():
    loss, params = problem(), fresh()
    groups = [{"params": params[:1], "max_grad_norm": 0}, {"params": params[1:]}]
    optimizer = IVON.auto(groups, num_steps=100, grad_batch_size=8.0, max_grad_norm=1.0)
    for _ in range(2):
        with optimizer.sampled_params(train=True):
            loss(params, 0).backward()
    optimizer.step()
    norm = torch.linalg.vector_norm(torch.cat([param.grad.flatten() for param in params])).item()
    assert optimizer.param_groups[0]["clip"] == 1.0
    assert optimizer.param_groups[1]["clip"] == pytest.approx(1 / norm, rel=1e-5)
    momentum = optimizer.state[params[1]]["momentum"]
    torch.testing.assert_close(momentum, 0.1 * params[1].grad / norm, rtol=1e-5, atol=0)


def test_a_checkpoint_goes_on_where_the_run_was():
    def run(steps, saved=None, start=0):
        loss, params = problem(), fresh()
        optimizer = IVON.auto(params, num_steps=20, grad_batch_size=8.0, max_grad_norm=2.0, seed=3)
        if saved is not None:
            with torch.no_grad():
                for param, value in zip(params, saved[1], strict=True):
                    param.copy_(value)
            optimizer.load_state_dict(saved[0])
        for step in range(start, steps):
            optimizer.train()
            optimizer.zero_grad()
            loss(params, step).backward()
            optimizer.step()
        return optimizer.state_dict(), [param.detach().clone() for param in params]

    whole, resumed = run(20)[1], run(20, saved=run(9), start=9)[1]
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("step", [1, 2, 50])
@pytest.mark.parametrize("clip", [1.0, 0.2])
def test_weights_of_a_clipped_average(step, clip):
    decay = corrected_decay(0.99, step)
    assert clipped_decay(decay, clip=1.0, weight=1.0) == pytest.approx(decay, rel=1e-12)
    kept = clipped_decay(decay, clip=clip, weight=0.7)
    weight = decay * 0.7 + (1 - decay) * clip**2
    assert kept * weight == pytest.approx(decay * 0.7) and (1 - kept) * weight == pytest.approx(
        (1 - decay) * clip**2
    )


def test_gradients_that_others_clipped_are_noticed_once():
    loss, params = problem(), fresh()
    optimizer = IVON.auto(params, num_steps=100, grad_batch_size=8.0, max_grad_norm=None)

    def steps(count, limit):
        for step in range(count):
            optimizer.train()
            optimizer.zero_grad()
            loss(params, step).backward()
            nn.utils.clip_grad_norm_(params, limit)
            optimizer.step()

    steps(10, 1e9)
    with pytest.warns(UserWarning, match="the same norm, 1, step after step: clipped before it sees them"):
        steps(6, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(6, 1.0)
        watch = NormWatch()
        for norm in (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.001, 1.0, 1.001, 1.0):
            watch.look(norm)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_grad_norm": -1.0}, "max_grad_norm must be > 0 and finite, or None, got -1"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be > 0 and finite, or None, got nan"),
        ({"max_grad_norm": 1.0, "mean_step": "newton"}, 'max_grad_norm needs mean_step="adam"'),
    ],
)
def test_what_cannot_be(settings, words):
    common = {"lr": 0.1, "ess": 10.0, "hess_approx": "gradsq", "grad_batch_size": 4.0, "mean_step": "adam"}
    with pytest.raises(ConfigError, match=words):
        IVON(fresh(), **{**common, **settings})
