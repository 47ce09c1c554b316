"""Number formats in use: loss scaling in float16, autocast, and casts of the parameters under the optimizer."""

import copy

import peft
import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step, same, snapshot, through_disk, weights

from vlora import IVON
from vlora.ivon.low_precision import read_state

BITS = {"state_bits": 8, "min_8bit_size": 1}


def cast(model, dtype):
    """What TRL does to the adapters of a quantised base: new data in the same parameter objects."""
    for p in model.parameters():
        p.data = p.data.to(dtype)


def scaled_step(model, optimizer, scaler, step, factor=1.0):
    optimizer.zero_grad()
    optimizer.train()
    data = batch(step, dtype=next(model.parameters()).dtype)
    scaler.scale(factor * loss_of(model, data)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("bits", [{}, BITS])
class TestFloat16:
    def test_overflow_changes_nothing_but_the_scale(self, bits):
        model, optimizer = make(dtype=torch.float16, **bits)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        scaled_step(model, optimizer, scaler, 0)
        before, mean = snapshot(optimizer), weights(model)
        group = copy.deepcopy(optimizer.state_dict()["param_groups"][0])
        scaled_step(model, optimizer, scaler, 1, factor=float("inf"))
        assert scaler.get_scale() == 512.0
        assert same(weights(model), mean) and not optimizer.holds_sample
        for p, state in optimizer.state.items():
            assert all(torch.equal(value, before[id(p)][key]) for key, value in state.items())
        changed = {k for k, v in optimizer.state_dict()["param_groups"][0].items() if v != group[k]}
        assert changed == {"draw"}  # the next step has noise of its own
        scaled_step(model, optimizer, scaler, 2)
        assert not same(weights(model), mean)

    def test_the_scale_has_no_part_in_the_result(self, bits):
        """Powers of two, so that scaling is exact until something underflows."""
        found = []
        for scale in (64.0, 1024.0):
            model, optimizer = make(dtype=torch.float16, **bits)
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            for step in range(3):
                scaled_step(model, optimizer, scaler, step)
            found.append([read_state(optimizer.state[p], "hess") for p in model.parameters()])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_noise_that_auto_finds_does_not_depend_on_the_loss_scale(dtype):
    found = []
    for scale in (1.0, 256.0):
        model, _ = make(dtype=dtype)
        optimizer = IVON.auto(model.parameters(), num_steps=6, grad_batch_size=12, lr=0.1, init_std=0.02)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(6):
            scaled_step(model, optimizer, scaler, step)
        (group,) = optimizer.param_groups
        assert group["std"] != 0.02 and group["noise_steps"] == 6
        found.append([group["std"], group["ess"], group["weight_decay"]])
    assert found[0] == pytest.approx(found[1], rel=1e-6 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("settings", [{}, {"stochastic_rounding": True}, BITS])
def test_bfloat16_parameters_learn_like_float32(settings):
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, optimizer = make(dtype=dtype, **(settings if dtype == torch.bfloat16 else {}))
        for step in range(60):
            one_step(model, optimizer, step % 4)
        losses[dtype] = sum(loss_of(model, batch(s, dtype=dtype)).item() for s in range(4)) / 4
    assert losses[torch.float32] < 0.65  # 0.73 at the start
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=0.02)


def test_autocast_leaves_parameters_and_state_in_float32():
    found = {}
    for enabled in (False, True):
        model, optimizer = make()
        for step in range(20):
            optimizer.zero_grad()
            optimizer.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = loss_of(model, batch(step % 4))
            loss.backward()
            optimizer.step()
        assert {v.dtype for s in optimizer.state.values() for k, v in s.items() if k != "step"} == {
            torch.float32
        }
        found[enabled] = torch.cat([w.flatten() for w in weights(model)])
    assert not torch.equal(found[True], found[False])
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0.02)


class TestCasts:
    @pytest.mark.parametrize("bits", [{}, BITS])
    def test_down_and_up_again_loses_no_digit(self, bits):
        model, optimizer = make(**bits)
        one_step(model, optimizer, 0)
        mean, before = weights(model), snapshot(optimizer)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            cast(model, dtype)
            optimizer.train()
            optimizer.eval()
            for p, m in zip(model.parameters(), mean, strict=True):
                assert torch.equal(p, m.to(dtype))
                state = optimizer.state[p]
                assert all(torch.equal(v, state[k]) for k, v in before[id(p)].items())
                assert torch.equal(optimizer.posterior_state(p)["mean"], m)

    def test_export_right_after_a_cast(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        mean = weights(model)
        for dtype in (torch.bfloat16, torch.float32):
            cast(model, dtype)
            for p, m in zip(model.parameters(), mean, strict=True):
                assert torch.equal(optimizer.posterior_state(p)["mean"], m)

    def test_while_a_draw_is_held(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        mean = weights(model)
        for dtype in (torch.bfloat16, torch.float32):
            optimizer.train()
            cast(model, dtype)
            optimizer.eval()
            assert same(weights(model), [m.to(dtype) for m in mean])
        optimizer.train()
        optimizer.eval()
        assert same(weights(model), mean)

    def test_before_the_first_step_as_trl_does(self):
        model, optimizer = make()
        cast(model, torch.bfloat16)
        for step in range(3):
            one_step(model, optimizer, step)
        for p in model.parameters():
            state = optimizer.state[p]
            assert p.dtype == torch.bfloat16 and state["mean"].dtype == state["hess"].dtype == torch.float32
            assert torch.equal(p, state["mean"].bfloat16()) and not torch.equal(p.float(), state["mean"])

    def test_other_weights_of_another_format_become_the_mean(self):
        model, optimizer = make(dtype=torch.bfloat16)
        one_step(model, optimizer, 0)
        cast(model, torch.float32)
        with torch.no_grad():
            model[0].weight.fill_(0.123)
        optimizer.train()
        optimizer.eval()
        assert (model[0].weight == torch.tensor(0.123)).all()
        assert (optimizer.state[model[0].weight]["mean"] == torch.tensor(0.123)).all()

    def test_checkpoint_of_a_bfloat16_model_in_a_float32_model(self):
        model, optimizer = make(dtype=torch.bfloat16)
        one_step(model, optimizer, 0)
        saved = through_disk({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        twin, twin_optimizer = make(seed=4)
        twin.load_state_dict(saved["model"])
        twin_optimizer.load_state_dict(saved["optimizer"])
        twin_optimizer.train()
        twin_optimizer.eval()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(q, optimizer.state[p]["mean"])


class TestPeft:
    def adapter(self, **kwargs):
        torch.manual_seed(0)
        base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 2)).to(torch.bfloat16)
        return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]), **kwargs)

    def train(self, model, optimizer, step=0):
        optimizer.zero_grad()
        optimizer.train()
        inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(step)).bfloat16()
        model(inputs).float().square().mean().backward()
        optimizer.step()

    @pytest.mark.parametrize(("autocast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
    def test_adapters_on_a_bfloat16_base(self, autocast, dtype):
        model = self.adapter(autocast_adapter_dtype=autocast)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {dtype}
        optimizer = IVON(trained, lr=0.1, ess=100.0)
        for step in range(3):
            self.train(model, optimizer, step)
        for p in trained:
            assert p.dtype == dtype and optimizer.state[p]["mean"].dtype == torch.float32
            assert torch.equal(p, optimizer.state[p]["mean"].to(dtype))

    def test_a_second_adapter_leaves_the_first_and_its_optimizer_alone(self):
        """PEFT puts new parameters in the place of the adapter that it casts, and only of that one."""
        model = self.adapter(autocast_adapter_dtype=False)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = IVON(trained.values(), lr=0.1, ess=100.0)
        self.train(model, optimizer)
        before = snapshot(optimizer)
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["0"]), autocast_adapter_dtype=True)
        found = dict(model.named_parameters())
        assert all(found[name] is p and p.dtype == torch.bfloat16 for name, p in trained.items())
        assert all(torch.equal(v, before[id(p)][k]) for p, s in optimizer.state.items() for k, v in s.items())
        self.train(model, optimizer, 1)
