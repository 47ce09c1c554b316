"""State, checkpoints and what is exported for the posterior."""

import copy

import pytest
import torch
from ivon_problems import make, one_step, same, snapshot, through_disk, weights

from vlora import IVON
from vlora.errors import TrainingError


class TestCheckpoints:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_resumed_run_is_bit_equal(self, dtype):
        model, optimizer = make(dtype=dtype)
        for step in range(3):
            one_step(model, optimizer, step)
        saved = through_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        resumed, resumed_optimizer = make(seed=99, dtype=dtype, lr=1.0, ess=5.0, hess_init=7.0, beta2=0.5)
        resumed.load_state_dict(saved["model"])
        resumed_optimizer.load_state_dict(saved["optimizer"])
        for step in range(3, 7):
            one_step(model, optimizer, step)
            one_step(resumed, resumed_optimizer, step)
        assert same(weights(model), weights(resumed))
        for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
            for key in ("step", "mean", "hess", "momentum"):
                a, b = optimizer.state[p][key], resumed_optimizer.state[q][key]
                assert torch.equal(a, b) and a.dtype == b.dtype

    def test_low_precision_parameters_keep_float32_state(self):
        model, optimizer = make(dtype=torch.bfloat16)
        one_step(model, optimizer, 0)
        before = snapshot(optimizer)
        optimizer.load_state_dict(through_disk(optimizer.state_dict()))
        for p in model.parameters():
            for key in ("mean", "hess", "momentum"):
                assert optimizer.state[p][key].dtype == torch.float32
                assert torch.equal(optimizer.state[p][key], before[id(p)][key])
            assert torch.equal(p, optimizer.state[p]["mean"].bfloat16())

    def test_bf16_mean_moves_below_the_resolution_of_the_parameter(self):
        param = torch.nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))
        optimizer = IVON(
            [param], lr=1e-4, ess=1e4, rescale_lr=False, clip_radius=1.0, debias=False, beta1=0.0
        )
        for _ in range(100):
            optimizer.zero_grad()
            optimizer.train()
            (100 * param.float()).sum().backward()
            optimizer.step()
        # 100 steps of 1e-4 (the trust region), each far below bf16's spacing of 2^-8
        torch.testing.assert_close(optimizer.state[param]["mean"], torch.full((64,), 0.99), rtol=1e-5, atol=0)

    def test_checkpoint_taken_while_a_draw_is_held(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        mean = weights(model)
        optimizer.train()
        saved = through_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        resumed, resumed_optimizer = make(seed=3)
        resumed.load_state_dict(saved["model"])
        resumed_optimizer.load_state_dict(saved["optimizer"])
        assert same(weights(resumed), mean) and not resumed_optimizer.holds_sample
        resumed_optimizer.train()
        assert same(weights(resumed), weights(model))

    def test_state_dict_holds_only_tensors_numbers_and_strings(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        state = optimizer.state_dict()
        assert set(state["state"][0]) == {"step", "momentum", "hess", "mean"}
        for group in state["param_groups"]:
            assert all(isinstance(v, (int, float, str, bool, list, type(None))) for v in group.values())

    def test_checkpoint_of_another_shape_is_refused(self):
        small, big = (torch.nn.Parameter(torch.ones(n)) for n in (2, 3))
        optimizers = [IVON([p], lr=0.1, ess=10.0) for p in (small, big)]
        optimizers[0].train()
        small.sum().backward()
        optimizers[0].step()
        with pytest.raises(TrainingError, match=r"shape \(3,\) for parameter 0, the checkpoint has \(2,\)"):
            optimizers[1].load_state_dict(optimizers[0].state_dict())

    def test_deepcopy_goes_on_alike_even_while_a_draw_is_held(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        optimizer.train()
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
        for m, o in ((model, optimizer), (twin, twin_optimizer)):
            one_step(m, o, 1)
            one_step(m, o, 2)
        assert same(weights(model), weights(twin))

    def test_user_pre_hook_on_loading_is_respected(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)

        def double_hess(_, state):
            state = copy.deepcopy(state)
            for each in state["state"].values():
                each["hess"] *= 2
            return state

        expected = optimizer.state[model[0].weight]["hess"] * 2
        optimizer.register_load_state_dict_pre_hook(double_hess)
        optimizer.load_state_dict(optimizer.state_dict())
        assert torch.equal(optimizer.state[model[0].weight]["hess"], expected)


class TestPosteriorState:
    def test_exact_mean_even_while_a_draw_is_held(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        mean = weights(model)
        optimizer.train()
        for p, m in zip(model.parameters(), mean, strict=True):
            found = optimizer.posterior_state(p)
            assert torch.equal(found["mean"], m)
            assert torch.equal(found["hess"], optimizer.state[p]["hess"])
            assert found["hess"] is not optimizer.state[p]["hess"]
            numbers = {k: found[k] for k in ("ess", "weight_decay", "hess_init", "beta2", "step")}
            assert numbers == {
                "ess": 1000.0,
                "weight_decay": 1e-4,
                "hess_init": 0.5,
                "beta2": 0.99,
                "step": 1,
            }

    def test_refused_before_the_first_step_and_for_strangers(self):
        model, optimizer = make()
        optimizer.train()
        with pytest.raises(TrainingError, match="no posterior for this parameter"):
            optimizer.posterior_state(model[0].weight)
        with pytest.raises(TrainingError, match="not in the optimizer"):
            optimizer.posterior_state(torch.nn.Parameter(torch.ones(1)))
