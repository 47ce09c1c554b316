"""The train()/step()/eval() protocol of vlora.IVON: draws, accumulation, closures, refusals."""

import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step, same, snapshot, weights

from vlora import IVON
from vlora.errors import TrainingError


class TestProtocol:
    def test_train_is_idempotent_and_eval_restores_the_exact_mean(self):
        model, optimizer = make()
        before = weights(model)
        optimizer.train()
        sample = weights(model)
        assert optimizer.holds_sample and not same(sample, before)
        optimizer.train()
        assert same(weights(model), sample)
        optimizer.eval()
        optimizer.eval()
        assert same(weights(model), before) and not optimizer.holds_sample

    def test_draw_has_the_posterior_width(self):
        param = torch.nn.Parameter(torch.full((100_000,), 3.0))
        optimizer = IVON([param], lr=0.1, ess=400.0, hess_init=0.2, weight_decay=0.05)
        optimizer.train()
        noise = param.detach() - 3
        assert noise.std().item() == pytest.approx(0.1, rel=0.01)
        assert abs(noise.mean().item()) < 0.001

    def test_evaluating_between_micro_batches_changes_nothing(self):
        a, b = make(), make()
        one_step(*a, 0, micro=3)
        model, optimizer = b
        x, y = batch(0)
        for part in zip(x.chunk(3), y.chunk(3), strict=True):
            optimizer.train()
            (loss_of(model, part) / 3).backward()
            optimizer.eval()
        optimizer.train()
        optimizer.step()
        assert same(weights(a[0]), weights(model))

    @pytest.mark.parametrize("foreach", [True, False])
    def test_parameters_hold_the_mean_after_step_and_a_new_draw_comes_next(self, foreach):
        model, optimizer = make(foreach=foreach)
        optimizer.train()
        first = weights(model)
        loss_of(model, batch(0)).backward()
        optimizer.step()
        assert same(weights(model), [optimizer.state[p]["mean"] for p in model.parameters()])
        noise = [a - b for a, b in zip(first, weights(model), strict=True)]
        optimizer.train()
        again = [p.detach() - optimizer.state[p]["mean"] for p in model.parameters()]
        assert max((a - b).abs().max() for a, b in zip(noise, again, strict=True)) > 0.01

    def test_step_without_a_draw_says_what_to_do(self):
        model, optimizer = make()
        loss_of(model, batch(0)).backward()
        with pytest.raises(TrainingError, match=r"call optimizer.train\(\) before the forward pass"):
            optimizer.step()
        optimizer.train()
        optimizer.step()
        with pytest.raises(TrainingError, match=r"sampled_params\(train=True\)"):
            optimizer.step()

    def test_noise_ignores_the_global_random_state(self):
        draws = []
        for seed in (1, 2):
            model, optimizer = make()
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            optimizer.train()
            assert torch.equal(state, torch.get_rng_state())
            draws.append(weights(model))
        assert same(*draws)
        model, optimizer = make(seed=0)
        other_model, other = make(seed=0)
        other.param_groups[0]["seed"] = 1
        optimizer.train()
        other.train()
        assert not same(weights(model), weights(other_model))

    def test_weights_loaded_between_steps_become_the_mean(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        with torch.no_grad():
            for p in model.parameters():
                p.data = torch.ones_like(p)
        optimizer.train()
        optimizer.eval()
        assert all(bool((p == 1).all()) for p in model.parameters())

    def test_loss_falls(self):
        model, optimizer = make(lr=0.5)
        first = loss_of(model, batch(0)).item()
        for _ in range(200):
            one_step(model, optimizer, 0)
        assert loss_of(model, batch(0)).item() < 0.7 * first

    def test_data_ptr_and_storage_never_change(self):
        model, optimizer = make()
        ptrs = [p.data_ptr() for p in model.parameters()]
        for step in range(3):
            one_step(model, optimizer, step)
            with optimizer.sampled_params():
                assert [p.data_ptr() for p in model.parameters()] == ptrs
        assert [p.data_ptr() for p in model.parameters()] == ptrs


class TestAccumulation:
    @pytest.mark.parametrize("approx", ["price", "gradsq"])
    def test_micro_batches_equal_one_batch(self, approx):
        runs = [make(dtype=torch.float64, hess_approx=approx) for _ in range(2)]
        for step in range(5):
            one_step(*runs[0], step, micro=1)
            one_step(*runs[1], step, micro=4)
        for key in ("mean", "hess", "momentum"):
            for p, q in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
                torch.testing.assert_close(
                    runs[0][1].state[p][key], runs[1][1].state[q][key], rtol=1e-10, atol=1e-14
                )


class TestClosure:
    def test_closure_draws_mc_samples_times_and_returns_the_mean_loss(self):
        model, optimizer = make(mc_samples=3)
        losses, samples = [], []

        def closure():
            optimizer.zero_grad()
            loss = loss_of(model, batch(0))
            loss.backward()
            losses.append(loss.item())
            samples.append(weights(model))
            return loss

        value = optimizer.step(closure)
        assert value.item() == pytest.approx(sum(losses) / 3)
        assert not same(samples[0], samples[1])
        other, by_hand = make()
        for _ in range(3):
            with by_hand.sampled_params(train=True):
                loss_of(other, batch(0)).backward()
        by_hand.step()
        assert same(weights(model), weights(other))

    def test_closure_without_a_loss_and_a_failing_closure(self):
        model, optimizer = make(mc_samples=2)
        assert optimizer.step(lambda: loss_of(model, batch(0)).backward()) is None
        mean, calls = weights(model), []

        def fails():
            loss_of(model, batch(0)).backward()
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            optimizer.step(fails)
        assert same(weights(model), mean)
        with pytest.raises(TrainingError, match="none was made"):
            optimizer.step()

    def test_train_refuses_to_ignore_mc_samples(self):
        _, optimizer = make(mc_samples=4)
        with pytest.raises(TrainingError, match="mc_samples=4"):
            optimizer.train()


class TestNonFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_raises_and_leaves_everything_untouched(self, value):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        mean, state = weights(model), snapshot(optimizer)
        optimizer.zero_grad()
        optimizer.train()
        loss_of(model, batch(1)).backward()
        next(iter(model.parameters())).grad[0, 0] = value
        with pytest.raises(
            TrainingError, match=r"parameter group 0, shape \(8, 4\); mean and Hessian are unchanged"
        ):
            optimizer.step()
        assert same(weights(model), mean)
        for key, saved in state.items():
            now = snapshot(optimizer)[key]
            assert all(torch.equal(saved[k], now[k]) for k in saved)
        one_step(model, optimizer, 1)

    def test_skipping_is_opt_in_and_counted(self):
        model, optimizer = make(skip_nonfinite=True)
        mean = weights(model)
        optimizer.train()
        (loss_of(model, batch(0)) * float("nan")).backward()
        optimizer.step()
        assert optimizer.skipped_steps == 1 and same(weights(model), mean)
        one_step(model, optimizer, 0)
        assert (
            optimizer.skipped_steps == 1 and optimizer.state_dict()["param_groups"][0]["skipped_steps"] == 1
        )
