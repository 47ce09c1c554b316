"""Known defects of ivon-opt 0.1.3 in state, memory, precision and reproducibility."""

import io

import ivon
import pytest
import torch
from ivon_problems import SETTINGS, oracle_step, our_step, param
from torch.profiler import ProfilerActivity, profile

from vlora import IVON


def peak_bytes(work):
    """Largest growth of CPU memory held by torch while ``work`` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_row_9_resume_keeps_the_debiasing():
    """ivon-opt keeps its step count outside ``state_dict``, so the first step after a resume is ten times too long."""

    def moves(make, step):
        w = param(1, dtype=torch.float64)
        optimizer = make(w)
        for _ in range(200):
            step(optimizer, w)
        v = torch.nn.Parameter(w.detach().clone())
        resumed = make(v)
        resumed.load_state_dict(optimizer.state_dict())
        before = w.detach().clone()
        for o, p in ((optimizer, w), (resumed, v)):
            torch.manual_seed(0)
            step(o, p)
        return (w.detach() - before).item(), (v.detach() - before).item()

    def linear(begin):
        def step(optimizer, p):
            optimizer.zero_grad()
            begin(optimizer, p)
            optimizer.step()

        return step

    def oracle_begin(optimizer, p):
        with optimizer.sampled_params(train=True):
            p.sum().backward()

    def our_begin(optimizer, p):
        optimizer.train()
        p.sum().backward()

    settings = {**SETTINGS, "weight_decay": 0.0}
    straight, resumed = moves(lambda w: ivon.IVON([w], **settings), linear(oracle_begin))
    assert resumed / straight == pytest.approx(10.0, rel=0.01)
    straight, resumed = moves(lambda w: IVON([w], **settings), linear(our_begin))
    assert resumed == straight


def test_row_10_state_is_per_parameter():
    """ivon-opt keeps flat tensors in its param groups, which ``load_state_dict`` neither casts nor moves."""
    w = param()
    assert isinstance(ivon.IVON([w], **SETTINGS).param_groups[0]["hess"], torch.Tensor)
    w = param(2, 3)
    optimizer = IVON([w], **SETTINGS)
    our_step(optimizer, w)
    assert not any(isinstance(v, torch.Tensor) for v in optimizer.param_groups[0].values())
    assert {k: tuple(v.shape) for k, v in optimizer.state[w].items()} == {
        "step": (),
        "momentum": (2, 3),
        "mean": (2, 3),
        "hess": (2, 3),
    }
    v = param(2, 3, dtype=torch.float64)
    other = IVON([v], **SETTINGS)
    other.load_state_dict(optimizer.state_dict())
    assert all(other.state[v][key].dtype == torch.float64 for key in ("momentum", "mean", "hess"))


def test_row_18_memory_of_a_step():
    """ivon-opt needs ten and more copies of the trainables while it steps: draws, averages and flat temporaries."""
    size = 200_000
    grad = torch.ones(size)

    def work_for(optimizer, w, ours):
        def work():
            if ours:
                optimizer.train()
                w.grad = grad
            else:
                with optimizer.sampled_params(train=True):
                    w.grad = grad
            optimizer.step()

        work()  # so that the state is there
        return work

    copies = {}
    for cls in (ivon.IVON, IVON):
        w = param(size)
        copies[cls] = peak_bytes(work_for(cls([w], **SETTINGS), w, cls is IVON)) / (4 * size)
    assert copies[IVON] <= 3.2, "three temporaries beside parameter, gradient and the three state tensors"
    assert copies[ivon.IVON] > 2 * copies[IVON]


def test_row_19_storage_of_parameters():
    """ivon-opt turns all parameters into views of one new tensor at each draw, so ``data_ptr`` keeps changing."""
    for cls, kept in ((ivon.IVON, False), (IVON, True)):
        params = [param(5) for _ in range(3)]
        optimizer = cls(params, **SETTINGS)
        pointers = [w.data_ptr() for w in params]
        with optimizer.sampled_params():
            pass
        assert ([w.data_ptr() for w in params] == pointers) is kept


def test_row_20_hessian_of_bf16_parameters_moves():
    """ivon-opt keeps h in the parameter's dtype, where steps of 1 - beta2 round away and h never moves."""
    settings = {**SETTINGS, "beta2": 0.99999, "lr": 0.0}
    w = param(50, dtype=torch.bfloat16)
    oracle = ivon.IVON([w], **settings)
    v = param(50, dtype=torch.bfloat16)
    optimizer = IVON([v], **settings)
    for _ in range(20):
        oracle_step(oracle, w)
        our_step(optimizer, v)
    assert (oracle.param_groups[0]["hess"] == 1).float().mean() > 0.5
    assert (optimizer.state[v]["hess"] != 1).float().mean() == 1.0


def test_row_21_draws_are_seeded():
    """ivon-opt draws from the global random state, so sample number k cannot be asked for again."""

    def draws(cls, global_seed):
        w = param()
        optimizer = cls([w], **SETTINGS)
        torch.manual_seed(global_seed)
        found = []
        for _ in range(2):
            with optimizer.sampled_params():
                found.append(w.detach().clone())
        return torch.stack(found)

    assert not torch.equal(draws(ivon.IVON, 1), draws(ivon.IVON, 2))
    assert torch.equal(draws(IVON, 1), draws(IVON, 2))


def test_row_22_posterior_can_be_exported():
    """ivon-opt's published runs saved the weights only: its Hessian is one flat tensor with no parameter names."""
    model = torch.nn.Linear(3, 2)
    optimizer = IVON(model.parameters(), **SETTINGS)
    optimizer.train()
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    found = {name: optimizer.posterior_state(p) for name, p in model.named_parameters()}
    assert {name: tuple(each["hess"].shape) for name, each in found.items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    assert buffer.tell() < 20_000


def test_row_23_messages_name_the_wrong_value():
    """ivon-opt's message about a wrong ``hess_approx`` prints beta2 instead of it."""
    with pytest.raises(ValueError, match="0.99999"):
        ivon.IVON([param()], hess_approx="fisher", **SETTINGS)
    with pytest.raises(ValueError, match="'price' or 'gradsq', got 'fisher'"):
        IVON([param()], hess_approx="fisher", **SETTINGS)
