"""A prior that is lowered under h: entries with h + weight_decay <= 0 have no draw, and no gradient tells of it.

Rows of an embedding that a step does not use have a gradient of 0. Their NaN draw never reaches the loss, but
NaN * 0 is NaN, and with Price's estimate it used to enter h and then the mean.
"""

import copy

import pytest
import torch
from ivon_problems import snapshot
from torch import nn

import vlora.ivon.compiled
import vlora.ivon.faults
from vlora import IVON
from vlora.errors import TrainingError
from vlora.ivon.low_precision import is_coded, read_state, write_state

PATHS = {
    "foreach": {},
    "reference": {"foreach": False},
    "compiled": {"compiled": True},
    "eight_bit": {"state_bits": 8, "min_8bit_size": 8},
    "bfloat16": {"dtype": torch.bfloat16, "stochastic_rounding": True},
    "learned_prior": {"prior": "empirical_bayes", "prior_update_every": 50},
}
LEAST = -0.045


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Compile with a backend that runs the traced operations as they are."""
    torch._dynamo.reset()
    vlora.ivon.compiled._compiled.cache_clear()
    monkeypatch.setattr(vlora.ivon.compiled, "BACKEND", lambda module, _: module.forward)
    yield
    torch._dynamo.reset()
    vlora.ivon.compiled._compiled.cache_clear()


def problem(rows=40, dtype=torch.float32, **settings):
    """An embedding of which every step uses some rows, under a frozen head."""
    torch.manual_seed(0)
    table, head = nn.Embedding(rows, 4).to(dtype), nn.Linear(4, 3).requires_grad_(False).to(dtype)
    settings = {"lr": 0.1, "ess": 100.0, "hess_init": 0.1, "beta2": 0.9, "weight_decay": 0.05, **settings}
    return table, head, IVON(table.parameters(), **settings)


def backward(table, head, step, used=4):
    """Gradients of a few of the rows from the tenth on."""
    rows = torch.randint(10, len(table.weight), (used,), generator=torch.Generator().manual_seed(step))
    table.zero_grad()
    nn.functional.cross_entropy(head(table(rows)).float(), rows % 3).backward()


def one_step(table, head, optimizer, step, **kwargs):
    optimizer.train()
    backward(table, head, step, **kwargs)
    optimizer.step()


def set_unused(optimizer, table, value=LEAST):
    """Negative estimates in rows that no step uses, as Price's estimate leaves them; within the weight decay."""
    state = optimizer.state[table.weight]
    hess = read_state(state, "hess")
    hess[3:6] = value
    if is_coded(state):
        write_state(state, read_state(state, "momentum"), hess, shift=0.05, step=None)


def assert_untouched(optimizer, table, state, mean):
    assert not optimizer.holds_sample and torch.equal(table.weight.detach(), mean)
    for key, saved in state.items():
        now = snapshot(optimizer)[key]
        assert saved.keys() == now.keys() and all(torch.equal(saved[k], now[k]) for k in saved)


def test_a_weight_decay_that_falls_in_a_run_stops_it_before_anything_is_nan():
    """What used to happen: rows of the mean NaN one by one, and an error when a step at last used one of them."""
    table, head, optimizer = problem(200)
    for step in range(200):
        one_step(table, head, optimizer, step, used=16)
    state, mean = snapshot(optimizer), table.weight.detach().clone()
    hess = optimizer.state[table.weight]["hess"]
    assert (hess + 1e-4 <= 0).any(1).sum() > 3
    optimizer.param_groups[0]["weight_decay"] = 1e-4
    for _ in range(2):
        message = (
            r"h \+ weight_decay > 0, got -0\.\d+ in parameter group 0, shape \(200, 4\), where weight_decay is 0.0001, "
            r"lowered from 0.05: no draw .*; mean and Hessian are unchanged. Set weight_decay above 0\.\d+, or go back"
        )
        with pytest.raises(TrainingError, match=message):
            optimizer.train()
        assert_untouched(optimizer, table, state, mean)
    optimizer.param_groups[0]["weight_decay"] = 1.001 * -float(hess.min())  # the cure
    for step in range(200, 220):
        one_step(table, head, optimizer, step)
    assert table.weight.isfinite().all() and hess.isfinite().all()


@pytest.mark.filterwarnings("ignore:IVON's noise")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("when", ["before_train", "before_step", "in_context", "before_eval_draw"])
def test_every_path_is_stopped_with_its_state_intact(path, when):
    table, head, optimizer = problem(**PATHS[path])
    for step in range(2):
        one_step(table, head, optimizer, step)
    set_unused(optimizer, table)
    one_step(table, head, optimizer, 2)
    state, mean = snapshot(optimizer), table.weight.detach().clone()
    assert all(value.isfinite().all() for saved in state.values() for value in saved.values())

    def lower():
        optimizer.param_groups[0]["weight_decay"] = 1e-4

    with pytest.raises(TrainingError, match=r"got -0\.0\d+ in parameter group 0, shape \(40, 4\)"):
        if when == "before_train":
            lower()
            optimizer.train()
        elif when == "before_step":
            optimizer.train()
            backward(table, head, 3)
            lower()
            optimizer.step()
        elif when == "in_context":
            with optimizer.sampled_params(train=True):
                backward(table, head, 3)
                lower()
            optimizer.step()
        else:
            lower()
            with optimizer.sampled_params():
                pass
    assert_untouched(optimizer, table, state, mean)
    optimizer.param_groups[0]["weight_decay"] = 0.05
    one_step(table, head, optimizer, 4)
    assert (
        table.weight.isfinite().all() and read_state(optimizer.state[table.weight], "hess").isfinite().all()
    )


def test_after_loading_the_first_draw_asks():
    table, head, optimizer = problem()
    one_step(table, head, optimizer, 0)
    set_unused(optimizer, table)
    _, _, other = problem(weight_decay=1e-4)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # brings its own weight decay, which fits
    other.param_groups[0]["weight_decay"] = 1e-4
    with pytest.raises(
        TrainingError, match=r"got -0.0449 .* weight_decay is 0.0001: no draw .* above 0.045, or"
    ):
        other.train()
    assert not other.holds_sample


def test_a_start_without_precision_is_refused():
    _, _, optimizer = problem(hess_init=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    with pytest.raises(TrainingError, match="got 0 in parameter group 0, .* Set weight_decay above 0, or"):
        optimizer.train()


def test_h_is_looked_at_only_where_the_weight_decay_has_fallen(monkeypatch):
    looked = []
    whole = vlora.ivon.faults._precision_range
    monkeypatch.setattr(
        vlora.ivon.faults, "_precision_range", lambda *args: looked.append(args[1]) or whole(*args)
    )
    table, head, optimizer = problem()
    for step in range(3):
        one_step(table, head, optimizer, step)
    assert looked == []
    for step, value in enumerate((0.06, 0.05, 0.05, 0.04)):
        optimizer.param_groups[0]["weight_decay"] = value
        one_step(table, head, optimizer, step)
    assert looked == [0.05, 0.04]
    optimizer.load_state_dict(optimizer.state_dict())
    looked.clear()
    for step in range(2):
        one_step(table, head, optimizer, step)
    assert looked == [0.04]
    looked.clear()
    table, head, _ = problem()
    automatic = IVON.auto(
        table, num_steps=5, grad_batch_size=4
    )  # the controller moves its weight decay every step
    decays = set()
    for step in range(5):
        one_step(table, head, automatic, step)
        decays.add(automatic.param_groups[0]["weight_decay"])
    assert len(decays) == 5 and looked == []
