"""The states of small tensors lie next to one another in memory; nothing but speed may depend on it."""

import copy

import pytest
import torch
from ivon_problems import same, snapshot

from vlora import IVON


def together(count):
    """IVON over ``count`` tensors of each of two dtypes, after one step."""
    g = torch.Generator().manual_seed(0)
    dtypes = [torch.float64] * count + [torch.bfloat16] * count
    params = [torch.nn.Parameter(torch.randn(7, 9, generator=g).to(dtype)) for dtype in dtypes]
    optimizer = IVON(params[::2] + params[1::2], lr=0.1, ess=50.0, hess_init=0.5)
    step_of(optimizer, params)
    return optimizer, params


def step_of(optimizer, params, without=None):
    optimizer.train()
    for i, param in enumerate(params):
        param.grad = None if i == without else param.detach() * 0.3
    optimizer.step()


def one_vector(optimizer, params):
    """Whether the states of each dtype of a group of parameters lie in one piece of memory, without gaps."""
    for dtype in {param.dtype for param in params}:
        some = [optimizer.state[param] for group in optimizer.param_groups for param in group["params"]
                if param.dtype == dtype and any(param is each for each in params)]  # fmt: skip
        for key in ("mean", "momentum", "hess"):
            if len({state[key].untyped_storage().data_ptr() for state in some}) > 1:
                return False
            ends = [state[key].data_ptr() + state[key].nbytes for state in some]
            if [state[key].data_ptr() for state in some[1:]] != ends[:-1]:
                return False
    return True


def test_small_states_of_a_dtype_are_neighbours_also_after_loading():
    optimizer, params = together(5)
    assert one_vector(optimizer, params)
    other, same_params = together(5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert one_vector(other, same_params)
    added = [torch.nn.Parameter(torch.ones(n)) for n in (3, 4)]
    optimizer.add_param_group({"params": added})
    step_of(optimizer, [*params, *added])
    assert one_vector(optimizer, params) and one_vector(optimizer, added)


def test_memory_is_that_of_the_states_alone():
    optimizer, params = together(5)
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for param in params
        for key, value in optimizer.state[param].items()
        if key != "step"
    }
    assert sum(storages.values()) == 3 * sum(optimizer.state[param]["mean"].nbytes for param in params)


@pytest.mark.parametrize("loaded_bits", [None, 8, 32])
def test_8_bit_states_keep_no_float32_memory(loaded_bits):
    shapes = [(5,), (70, 70), (6,), (90, 90)]

    def trained(bits):
        params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
        optimizer = IVON(params, lr=0.1, ess=50.0, state_bits=bits)
        step_of(optimizer, params)
        return optimizer

    optimizer = trained(8)
    if loaded_bits is not None:
        optimizer.load_state_dict(trained(loaded_bits).state_dict())
    states = list(optimizer.state.values())
    tensors = [value for state in states for key, value in state.items() if key not in ("step", "mean")]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    assert sum(storages.values()) == sum(each.nbytes for each in tensors) < 3 * (4900 + 8100)


def test_tensors_that_were_replaced_give_the_same_numbers():
    runs = []
    for replace in (False, True):
        optimizer, params = together(5)
        if replace:
            for param in params[1:]:
                optimizer.state[param] = {k: v.clone() for k, v in optimizer.state[param].items()}
        for _ in range(3):
            step_of(optimizer, params)
        runs.append([optimizer.state[p][key] for p in params for key in ("mean", "hess", "momentum")])
    assert same(*runs)


def test_parameters_without_a_gradient_keep_their_state():
    optimizer, params = together(5)
    before = snapshot(optimizer)[id(params[2])]
    step_of(optimizer, params, without=2)
    step_of(optimizer, params)
    step_of(optimizer, params, without=2)
    late = optimizer.state[params[2]]
    assert int(late["step"]) == 2 and not torch.equal(late["mean"], before["mean"])
    assert torch.equal(late["mean"], params[2])


def test_a_saved_state_has_every_storage_once(tmp_path):
    optimizer, params = together(200)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    numbers = 3 * sum(optimizer.state[param]["mean"].nbytes for param in params)
    assert (tmp_path / "state.pt").stat().st_size < numbers + 1500 * len(params)
