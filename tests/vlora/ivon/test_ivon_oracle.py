"""Step-for-step agreement with the published ivon-opt 0.1.3, fed the same noise (test oracle only)."""

import ivon
import pytest
import torch

from vlora import IVON
from vlora.ivon.draws import noise_seed, standard_normal

F64 = torch.float64
SHAPES = [(3, 4), (5,), (2, 1, 3)]


def make_problem():
    g = torch.Generator().manual_seed(7)
    curvature = [torch.rand(shape, generator=g, dtype=F64) * 2 + 0.1 for shape in SHAPES]
    batches = [[torch.randn(shape, generator=g, dtype=F64) for shape in SHAPES] for _ in range(100)]

    def loss(params, step):
        quartic = sum((0.1 * p**4).sum() for p in params)
        return quartic + sum(
            (0.5 * c * (p - x) ** 2).sum() for p, c, x in zip(params, curvature, batches[step], strict=True)
        )

    start = [torch.randn(shape, generator=g, dtype=F64) for shape in SHAPES]
    return start, loss


def feed_noise(monkeypatch, like, seed):
    """Let the oracle's torch.randn return the noise of our draws 0, 1, 2, ... one draw a call."""
    real, draw = torch.randn, iter(range(10**6))

    def randn(*args, **kwargs):
        if "generator" in kwargs:
            return real(*args, **kwargs)
        number = next(draw)
        return torch.cat(
            [standard_normal(p, noise_seed(seed, "train", number, i)).ravel() for i, p in enumerate(like)]
        )

    monkeypatch.setattr(torch, "randn", randn)


def train(optimizer, params, loss, draws, protocol, steps=100):
    path = []
    for step in range(steps):
        if protocol == "train":
            optimizer.train()
            optimizer.zero_grad()
            loss(params, step).backward()
        else:
            for _ in range(draws):
                with optimizer.sampled_params(train=True):
                    optimizer.zero_grad()
                    loss(params, step).backward()
        optimizer.step()
        path.append(torch.cat([p.detach().ravel() for p in params]).clone())
    return path


CASES = {
    "plain": {},
    "rescale_off": {"rescale_lr": False, "lr": 0.02},
    "no_debias": {"debias": False},
    "clip": {"clip_radius": 0.05},
    "flat_prior": {"weight_decay": 0.0},
    "gradsq": {"hess_approx": "gradsq", "beta2": 0.999},
}


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("protocol", "draws"), [("train", 1), ("contexts", 1), ("contexts", 3)])
@pytest.mark.parametrize("case", CASES)
def test_100_steps_equal_ivon_opt(monkeypatch, case, protocol, draws, foreach):
    # hess_init is a binary fraction because the oracle rounds it to float32, even for float64 parameters
    kwargs = {"lr": 0.1, "ess": 50.0, "hess_init": 0.75, "beta2": 0.99, "weight_decay": 0.01, **CASES[case]}
    start, loss = make_problem()
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    optimizer = IVON(ours, seed=5, foreach=foreach, **kwargs)
    path = train(optimizer, ours, loss, draws, protocol)

    feed_noise(monkeypatch, start, seed=5)
    oracle = ivon.IVON(theirs, **kwargs)
    oracle_path = train(oracle, theirs, loss, draws, "contexts")

    for got, want in zip(path, oracle_path, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
    hess = torch.cat([optimizer.state[p]["hess"].ravel() for p in ours])
    momentum = torch.cat([optimizer.state[p]["momentum"].ravel() for p in ours])
    torch.testing.assert_close(hess, oracle.param_groups[0]["hess"], rtol=1e-8, atol=0)
    torch.testing.assert_close(momentum, oracle.param_groups[0]["momentum"], rtol=1e-8, atol=1e-12)
    assert (hess - 0.75).abs().max() > 0.05  # the comparison is about something
