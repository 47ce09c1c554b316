"""Known defects of ivon-opt 0.1.3 in use, each shown to fail there where that is cheap.

Row numbers are those of the project's survey; rows that need several processes are not here, Trainer's and
accelerate's are in ``test_ivon_trainer.py``.
"""

import warnings

import ivon
import pytest
import torch
from ivon_problems import SETTINGS, backward, oracle_step, our_step, param

from vlora import IVON


def test_row_1_parameters_of_several_dtypes():
    """ivon-opt wants one dtype for all parameters and raises ValueError otherwise."""
    with pytest.raises(ValueError, match="different dtypes"):
        ivon.IVON([param(), param(dtype=torch.float64)], **SETTINGS)
    params = [param(dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)]
    optimizer = IVON(params, **SETTINGS)
    optimizer.train()
    for w in params:
        backward(w)
    optimizer.step()
    for w in params:
        assert optimizer.state[w]["hess"].dtype == (
            torch.float64 if w.dtype == torch.float64 else torch.float32
        )
        assert w.abs().min() > 0.01


def test_row_2_model_converted_after_the_optimizer_was_built():
    """ivon-opt freezes device and dtype at construction and goes on in the old ones after ``model.to()``."""
    model = torch.nn.Linear(2, 1)
    oracle = ivon.IVON(model.parameters(), **SETTINGS)
    model.to(torch.float64)
    with oracle.sampled_params():
        assert oracle.param_groups[0]["momentum"].dtype == torch.float32
    model = torch.nn.Linear(2, 1)
    optimizer = IVON(model.parameters(), **SETTINGS)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # before the first step, and between steps
        model.to(dtype)
        optimizer.zero_grad()
        optimizer.train()
        model(torch.ones(1, 2, dtype=dtype)).square().sum().backward()
        optimizer.step()
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert model.weight.dtype == dtype
        assert all(optimizer.state[model.weight][k].dtype == expected for k in ("mean", "hess", "momentum"))


def test_row_4_empty_parameter_group():
    """ivon-opt concatenates the tensors of each group and crashes on an empty one, as Trainer builds for PEFT."""
    w = param()
    oracle = ivon.IVON([{"params": [w]}, {"params": []}], **SETTINGS)
    with pytest.raises((RuntimeError, ValueError), match="non-empty list"):
        oracle_step(oracle, w)
    w = param()
    our_step(IVON([{"params": [w]}, {"params": []}], **SETTINGS), w)
    assert w.abs().min() > 0


def test_row_5_weight_decay_of_the_groups_overrides_the_argument():
    """ivon-opt lets the ``weight_decay`` that Trainer writes into groups replace the prior passed, silently."""
    groups = [{"params": [param()], "weight_decay": 0.0}, {"params": [], "weight_decay": 0.0}]
    oracle = ivon.IVON([dict(g) for g in groups], weight_decay=0.01, **SETTINGS)
    assert oracle.param_groups[0]["weight_decay"] == 0.0
    with pytest.warns(UserWarning, match="weight_decay=0.01 has no effect.*prior_precision"):
        IVON([dict(g) for g in groups], weight_decay=0.01, **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = IVON([dict(g) for g in groups], prior_precision=1.0, **SETTINGS)
        assert optimizer.param_groups[0]["weight_decay"] == 0.01
        IVON([dict(groups[0]), {"params": [param()]}], weight_decay=0.01, **SETTINGS)  # one group uses it
        IVON([dict(g) for g in groups], **SETTINGS)  # nothing was asked for


def test_row_14_parameter_without_gradient():
    """ivon-opt reads ``p.grad.flatten()`` of every parameter and raises AttributeError on an unused one."""
    used, unused = param(), param()
    with pytest.raises(AttributeError, match="flatten"):
        oracle_step(ivon.IVON([used, unused], **SETTINGS), used)
    used, unused = param(), param()
    optimizer = IVON([used, unused], **SETTINGS)
    for _ in range(3):
        our_step(optimizer, used)
    with optimizer.sampled_params(train=True):
        backward(used)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.zeros(3)) and unused.grad is None
    assert int(optimizer.state[used]["step"]) == 4


def test_row_15_exception_inside_the_context():
    """ivon-opt has no try/finally, so an out-of-memory error leaves the noise in the weights for ever."""
    for cls, restored in ((ivon.IVON, False), (IVON, True)):
        w = param()
        optimizer = cls([w], **SETTINGS)
        with pytest.raises(MemoryError), optimizer.sampled_params(train=True):
            raise MemoryError
        assert torch.equal(w.detach(), torch.zeros(3)) is restored


def test_row_16_closure_without_context():
    """ivon-opt does not sample for a closure and crashes, which rules out Lightning's automatic optimisation."""

    def closure_for(optimizer, w):
        def closure():
            optimizer.zero_grad()
            loss = (w - 1).square().sum()
            loss.backward()
            return loss

        return closure

    w = param()
    oracle = ivon.IVON([w], **SETTINGS)
    with pytest.raises(TypeError, match="not subscriptable"):
        oracle.step(closure_for(oracle, w))
    optimizer = IVON([w], mc_samples=2, **SETTINGS)
    first = optimizer.step(closure_for(optimizer, w))
    for _ in range(30):
        last = optimizer.step(closure_for(optimizer, w))
    assert last < 0.1 * first


def test_row_17_groups_added_later_and_step_without_sample():
    """ivon-opt raises KeyError 'numel' for a group added later, and TypeError in ``step`` without a sample."""
    w, late = param(), param()
    oracle = ivon.IVON([w], **SETTINGS)
    oracle.add_param_group({"params": [late]})
    with pytest.raises(KeyError, match="numel"):
        oracle_step(oracle, w)
    oracle = ivon.IVON([param()], **SETTINGS)
    with pytest.raises(TypeError, match="not subscriptable"):
        oracle.step()
    optimizer = IVON([w], **SETTINGS)
    optimizer.add_param_group({"params": [late], "lr": 0.0})
    optimizer.train()
    backward(w)
    backward(late)
    optimizer.step()
    assert w.abs().min() > 0 and torch.equal(late.detach(), torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\) before the forward pass"):
        optimizer.step()
