"""IVON over FSDP2's sharded parameters: the draws, the steps and the checkpoints of one process."""

import copy
import sys
from types import ModuleType

import fsdp_problems as fsdp
import pytest
import torch
from ivon_problems import SETTINGS, param
from test_ivon_ddp import assert_close, assert_same_bits
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened
from torch.distributed.fsdp._flat_param import FlatParameter

from vlora import IVON
from vlora.errors import TrainingError


def assert_equal_lists(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_draws_do_not_depend_on_the_number_of_processes(two_ranks):
    one = fsdp.draws(False)
    for drawn in two_ranks(fsdp.draws, True):
        assert_equal_lists(drawn, one)


@pytest.mark.parametrize("shape", [(3, 2**18 + 5), (2**19 + 3,), (5, 7, 2**14)])
def test_large_draws_are_cut_from_blocks(two_ranks, shape):
    one = fsdp.large_draw(False, shape)
    assert all(torch.equal(drawn, one) for drawn in two_ranks(fsdp.large_draw, True, shape))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hess_approx": "gradsq", "grad_batch_size": 16.0},
        {"foreach": False},
        {"how": {"micro": 2}},
        {"how": {"contexts": 2}},
        {"how": {"clip": 0.05}},
        {"how": {"contexts": 2, "clip": 0.05}, "hess_approx": "gradsq"},
        {
            "ess": None, "noise_cost": 0.01, "mean_step": "adam", "hess_approx": "gradsq", "grad_batch_size": 16.0,
        },
        {
            "ess": None, "noise_cost": 0.01, "mean_step": "adam", "hess_approx": "gradsq", "grad_batch_size": 16.0,
            "max_grad_norm": 0.05,
        },
    ],
    ids=str,
)  # fmt: skip
def test_equal_to_one_process(two_ranks, settings):
    first, second = two_ranks(fsdp.run, True, dtype=torch.float64, **settings)
    assert_same_bits(first, second)
    assert_close(first, fsdp.run(False, dtype=torch.float64, **settings), atol=1e-6)


def test_forward_passes_see_what_the_parameters_hold(two_ranks):
    one = fsdp.predictions(False)
    assert (one[0] - one[1]).abs().max() > 1e-3
    for found in two_ranks(fsdp.predictions, True):
        for here, there in zip(found, one, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", [0, 1])
def test_all_ranks_raise_or_skip_together(two_ranks, where):
    for error, same, skipped, holds in two_ranks(fsdp.nonfinite, where):
        assert "expected finite gradients" in error
        assert "shape (7, 4)" in error
        assert (same, skipped, holds) == (True, 0, False)
    for outcome in two_ranks(fsdp.nonfinite, where, skip_nonfinite=True):
        assert outcome == (None, True, 1, False)


def test_all_ranks_refuse_a_lowered_prior_together(two_ranks):
    outcomes = two_ranks(fsdp.lowered_prior, 1)
    for (error, same, holds), got in zip(outcomes, ("less on another process", "-0.0449"), strict=True):
        assert f"expected h + weight_decay > 0, got {got} in parameter group 0, shape (7, 4)" in error
        assert (same, holds) == (True, False)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_checkpoints_go_to_another_world_size(two_ranks, tmp_path):
    whole = fsdp.run(False, steps=6)
    two_ranks(fsdp.save, tmp_path / "two", 3)
    assert_close(fsdp.resume(tmp_path / "two", False, 3, 3), whole)
    fsdp.save_alone(tmp_path / "one", 3)
    first, second = two_ranks(fsdp.resume, tmp_path / "one", True, 3, 3)
    assert_same_bits(first, second)
    assert_close(first, whole)


def test_resume_on_the_same_world_size_is_exact(two_ranks, tmp_path):
    whole = two_ranks(fsdp.run, True, steps=6)
    two_ranks(fsdp.save, tmp_path, 3)
    for there, here in zip(whole, two_ranks(fsdp.resume, tmp_path, True, 3, 3), strict=True):
        assert_same_bits(there, here)


def test_fsdp1_is_refused():
    original = param()  # use_orig_params=True keeps the parameter as a marked view
    _set_fsdp_flattened(original)
    for hidden in (FlatParameter(torch.zeros(4)), original):
        with pytest.raises(TrainingError, match="flat parameters of FSDP1: use FSDP2"):
            IVON([hidden], **SETTINGS).train()


def test_zero3_is_refused():
    w = param()
    w.ds_id = 0  # the mark of a partitioned parameter
    with pytest.raises(TrainingError, match="DeepSpeed ZeRO-3: use FSDP2"):
        IVON([w], **SETTINGS).train()


class DeepSpeedZeroOptimizer:
    """What ZeRO-1 and 2 do to the optimizer that they wrap: flat float32 copies in the place of the parameters."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, inner):
        self.optimizer, self.model_params = inner, [group["params"] for group in inner.param_groups]
        for group in inner.param_groups:
            flat = torch.cat([p.detach().reshape(-1) for p in group["params"]])
            group["params"] = [flat.clone().requires_grad_()]

    def step(self):
        for group, params in zip(self.optimizer.param_groups, self.model_params, strict=True):
            group["params"][0].grad = torch.cat([p.grad.reshape(-1) for p in params])
        self.optimizer.step()


class TestZero2:
    refused = r"flat copies that DeepSpeed \(ZeRO-1, ZeRO-2, bf16, fp16\) puts .* use DDP, or FSDP2"

    @pytest.fixture
    def wrapped(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
        params = [param(2, 3), param(4)]
        for each in params:
            each.grad = torch.ones_like(each)
        return DeepSpeedZeroOptimizer(IVON(params, **SETTINGS))

    def test_is_refused_with_and_without_a_draw(self, wrapped):
        with pytest.raises(TrainingError, match=self.refused):
            wrapped.step()  # its own train() does not exist, so nobody called IVON's
        with pytest.raises(TrainingError, match=self.refused):
            wrapped.optimizer.train()
        wrapped.optimizer.load_state_dict(wrapped.optimizer.state_dict())
        with pytest.raises(TrainingError, match=self.refused):
            wrapped.optimizer.train()

    def test_parameters_that_stay_are_not_refused(self, wrapped):
        for group, params in zip(wrapped.optimizer.param_groups, wrapped.model_params, strict=True):
            group["params"] = params
        wrapped.optimizer.add_param_group({"params": [param(5)]})
        twin = copy.deepcopy(wrapped.optimizer)
        for optimizer in (wrapped.optimizer, twin):
            optimizer.train()
            optimizer.step()
            assert not optimizer.holds_sample
