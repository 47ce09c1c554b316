"""The compiled step: plumbing with a backend that only traces, numbers with the real one."""

import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step, weights

import vlora.ivon.compiled
from vlora import IVON
from vlora.errors import ConfigError
from vlora.ivon.compiled import compiled_step_, step_numbers
from vlora.ivon.step import ivon_step

F64 = torch.float64
SETTINGS = {
    "lr": 0.05, "ess": 20.0, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99999, "clip_radius": 0.3,
    "debias": True, "hess_approx": "price", "grad_batch_size": None,
}  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Number of compilations, by a backend that runs the traced operations as they are."""
    count = [0]

    def backend(module, _):
        count[0] += 1
        return module.forward

    torch._dynamo.reset()
    vlora.ivon.compiled._compiled.cache_clear()
    monkeypatch.setattr(vlora.ivon.compiled, "BACKEND", backend)
    yield count
    torch._dynamo.reset()
    vlora.ivon.compiled._compiled.cache_clear()


def train(**kwargs):
    model, optimizer = make(clip_radius=0.5, **kwargs)
    for step in range(5):
        one_step(model, optimizer, step)
    return [t.float() for t in weights(model)] + [
        optimizer.state[p]["hess"].float() for p in model.parameters()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "approx", [{}, {"hess_approx": "gradsq"}, {"hess_approx": "gradsq", "grad_batch_size": 12}]
)
def test_optimizer_equals_the_reference_path(traced, dtype, approx):
    got, want = train(dtype=dtype, compiled=True, **approx), train(dtype=dtype, foreach=False, **approx)
    tolerance = 1e-5 if dtype != torch.bfloat16 else 0.02
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert traced[0] == 1


def test_schedules_steps_and_groups_do_not_compile_again(traced):
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 70_000, 3, 9)]
    groups = [{"params": params[:2], "lr": 0.3, "ess": 7.0}, {"params": params[2:], "clip_radius": 0.1}]
    optimizer = IVON(groups, lr=0.1, ess=10.0, compiled=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    for _ in range(4):
        optimizer.train()
        for param in params:
            param.grad = param.detach() + 1
        optimizer.step()
        scheduler.step()
    assert traced[0] == 1


def test_collected_draws_enter(traced):
    def run(**kwargs):
        model, optimizer = make(mc_samples=3, **kwargs)
        for step in range(3):
            optimizer.step(lambda step=step: _closure(model, optimizer, step))
        return weights(model)

    for a, b in zip(run(compiled=True), run(foreach=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def _closure(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, batch(step))
    loss.backward()
    return loss


def test_empty_tensors_are_left_alone():
    empty = torch.zeros(0)
    compiled_step_(empty, empty, empty, empty, empty, None, step_numbers(SETTINGS, 1, torch.device("cpu")))


def test_the_reference_path_cannot_be_compiled():
    with pytest.raises(ConfigError, match="exclude each other"):
        IVON([torch.nn.Parameter(torch.zeros(2))], lr=0.1, ess=1.0, foreach=False, compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_generated_kernel_equals_the_reference():
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(0)
    numbers = step_numbers(SETTINGS, 7, torch.device("cpu"))
    for n in (1000, 3, 4096):
        param, mean, momentum, grad = (torch.randn(n, generator=g) for _ in range(4))
        hess = torch.rand(n, generator=g) + 0.1
        want = ivon_step(mean, momentum, hess, grad, (param - mean) * grad, step=7, **SETTINGS)
        with torch.no_grad():
            compiled_step_(param, mean, momentum, hess, grad, None, numbers)
        for got, value in zip((mean, momentum, hess), want, strict=True):
            torch.testing.assert_close(got, value, rtol=2e-6, atol=1e-7)
        assert torch.equal(param, mean)
