"""Parameters of several devices in one optimizer: nothing that takes a list of tensors may mix devices.

A machine with one device shows the grouping on ``meta`` tensors, which have a device, shapes and dtypes but no values;
what the numbers are is then checked on the CPU tensors beside them. The test with a GPU runs the whole protocol.
"""

from contextlib import contextmanager

import pytest
import torch
from ivon_problems import through_disk
from torch import Tensor

from vlora import IVON
from vlora.errors import TrainingError
from vlora.ivon.gradients import gather_entries
from vlora.ivon.state import by_device, restore_loaded_state
from vlora.ivon.update import apply_update

SETTINGS = {"lr": 0.1, "ess": 100.0, "hess_init": 0.5, "beta2": 0.9}


def parameter(
    values: list[float], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype).to(device))


@contextmanager
def one_device_per_list(monkeypatch):
    """Every multi-tensor call must see tensors of one device; yields the devices seen."""
    seen: set[str] = set()

    def watch(name):
        plain = getattr(torch, name)

        def watched(*args, **kwargs):
            lists = [arg for arg in args if isinstance(arg, (list, tuple))]
            devices = {t.device.type for group in lists for t in group if isinstance(t, Tensor)}
            assert len(devices) <= 1, f"{name} mixes {devices}"
            seen.update(devices)
            return plain(*args, **kwargs)

        monkeypatch.setattr(torch, name, watched)

    with monkeypatch.context():
        for name in dir(torch):
            if name.startswith("_foreach_"):
                watch(name)
        yield seen


def test_indices_are_grouped_by_device_in_order():
    tensors = [torch.empty(1, device=device) for device in ("cpu", "meta", "cpu", "meta", "cpu")]
    assert by_device(tensors) == [[0, 2, 4], [1, 3]]
    assert by_device([]) == []


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
def test_an_update_never_mixes_devices_and_leaves_cpu_numbers_as_they_are(monkeypatch, foreach, hess_approx):
    def updated(devices: list[str]) -> list[Tensor]:
        params = [parameter([0.5, -1.0, 2.0 + i], device) for i, device in enumerate(devices)]
        optimizer = IVON(params, foreach=foreach, hess_approx=hess_approx, **SETTINGS)
        for param in params:
            mean, zeros = param.detach().clone(), torch.zeros_like(param.detach())
            optimizer.state[param] = {
                "step": torch.zeros(()),
                "mean": mean,
                "momentum": zeros,
                "hess": zeros + 0.5,
            }
            param.data.add_(0.25)  # a draw
            param.grad = torch.full_like(param, 0.3)
        for group in optimizer.param_groups:
            group["sampled"] = list(range(len(params)))
        apply_update(optimizer.param_groups, gather_entries(optimizer.param_groups, optimizer.state))
        optimizer.eval()
        assert all(
            v.device == p.device
            for p in params
            for k, v in optimizer.state[p].items()
            if k in ("mean", "hess")
        )
        return [
            t for p in params if p.device.type == "cpu" for t in (p.detach(), *optimizer.state[p].values())
        ]

    with one_device_per_list(monkeypatch) as seen:
        mixed = updated(["cpu", "meta", "cpu", "meta"])
        assert seen >= ({"cpu", "meta"} if foreach else set())
    alone = updated(["cpu", "cpu", "cpu", "meta"])
    assert len(mixed) == 2 * len(alone) // 3
    count = len(mixed) // 2
    assert all(torch.equal(a, b) for a, b in zip(mixed[:count], alone[:count], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(mixed[count:], alone[2 * count :], strict=True))


def test_loaded_state_goes_to_the_device_of_each_parameter():
    here, there = parameter([1.0, 2.0]), parameter([3.0], "meta")
    saved = {
        "param_groups": [{"params": [0, 1]}],
        "state": {n: {k: torch.ones(s) for k in ("momentum", "hess", "mean")} for n, s in ((0, 2), (1, 1))},
    }
    states = {here: {}, there: {}}
    restore_loaded_state(states, [here, there], saved)
    assert {key: value.device.type for key, value in states[there].items()} == dict.fromkeys(
        ("momentum", "hess", "mean"), "meta"
    )
    assert states[here]["hess"].device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("closure", [False, True])
def test_cpu_and_cuda_parameters_in_one_optimizer(closure):
    """The CPU half goes its way as if it were alone; the CUDA half learns; a checkpoint brings both back."""

    def run(params: list[torch.nn.Parameter], steps: int, optimizer: IVON | None = None) -> IVON:
        optimizer = optimizer or IVON(params, mc_samples=1, **SETTINGS)

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = sum((p - 1).square().sum().cpu() for p in params)
            total.backward()
            return total

        for _ in range(steps):
            if closure:
                optimizer.step(loss)
            else:
                optimizer.train()
                loss()
                optimizer.step()
        return optimizer

    here, there = parameter([0.5, -1.0]), parameter([2.0, 4.0, 0.0], "cuda", torch.float64)
    optimizer = run([here, there], 4)
    alone = parameter([0.5, -1.0])
    run([alone], 4)
    assert torch.equal(here, alone)
    assert optimizer.state[there]["hess"].device.type == "cuda"
    assert (there - 1).abs().sum() < 5.0
    with optimizer.sampled_params():
        assert not torch.equal(here, alone)
    assert optimizer.posterior_state(there)["mean"].device.type == "cuda"
    copies = [torch.nn.Parameter(here.detach().clone()), torch.nn.Parameter(there.detach().clone())]
    resumed = IVON(copies, **SETTINGS)
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    run([here, there], 2, optimizer)
    run(copies, 2, resumed)
    assert torch.equal(copies[0], here) and torch.equal(copies[1], there)
    there.grad = torch.full_like(there, float("nan"))
    here.grad = torch.zeros_like(here)
    before = here.detach().clone()
    optimizer.train()
    with pytest.raises(TrainingError, match="NaN or infinity in parameter group 0"):
        optimizer.step()
    assert torch.equal(here, before)
