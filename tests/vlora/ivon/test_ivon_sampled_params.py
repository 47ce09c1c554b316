"""Draws in a context, as code written for ivon-opt uses them."""

import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step, same, weights

from vlora.errors import TrainingError


class TestSampledParams:
    def test_train_context_equals_the_train_protocol(self):
        a, b = make(), make()
        for step in range(3):
            one_step(*a, step)
            with b[1].sampled_params(train=True):
                b[1].zero_grad()
                loss_of(b[0], batch(step)).backward()
            b[1].step()
        for x, y in zip(weights(a[0]), weights(b[0]), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)

    def test_gradient_is_the_mean_over_contexts_however_it_is_cleared(self):
        model, optimizer = make()
        grads = []
        for draw in range(3):
            if draw == 1:
                optimizer.zero_grad(set_to_none=False)  # outside
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                loss_of(model, batch(0)).backward()
                grads.append([p.grad.clone() for p in model.parameters()])
        for i, p in enumerate(model.parameters()):
            torch.testing.assert_close(p.grad, sum(g[i] for g in grads) / 3)
        assert not torch.allclose(grads[0][0], grads[1][0])

    @pytest.mark.parametrize("approx", ["price", "gradsq"])
    def test_scaling_the_gradient_afterwards_scales_the_hessian_estimate(self, approx):
        """h after halving p.grad equals h of a halved loss."""
        runs = []
        for factor_in_loss in (True, False):
            model, optimizer = make(dtype=torch.float64, hess_approx=approx, beta2=0.9)
            for _ in range(2):
                with optimizer.sampled_params(train=True):
                    loss = loss_of(model, batch(0, dtype=torch.float64))
                    (0.5 * loss if factor_in_loss else loss).backward()
            if not factor_in_loss:
                for p in model.parameters():
                    p.grad *= 0.5
            optimizer.step()
            runs.append([optimizer.state[p]["hess"] for p in model.parameters()])
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
            assert (a - 0.5).abs().max() > 0

    def test_prediction_contexts_draw_anew_and_leave_training_alone(self):
        a, b = make(), make()
        seen = []
        for step in range(2):
            one_step(*a, step)
            for _ in range(2):
                with b[1].sampled_params():
                    seen.append(weights(b[0]))
            one_step(*b, step)
        assert same(weights(a[0]), weights(b[0]))
        assert not any(same(seen[i], seen[j]) for i in range(4) for j in range(i))

    def test_first_draw_under_inference_mode_leaves_usable_state(self):
        a, b = make(), make()
        with torch.inference_mode(), b[1].sampled_params():
            b[0](batch(0)[0])
        one_step(*a, 0)
        one_step(*b, 0)
        assert same(weights(a[0]), weights(b[0]))

    def test_prediction_context_inside_a_training_draw_puts_the_draw_back(self):
        model, optimizer = make()
        optimizer.train()
        sample = weights(model)
        with optimizer.sampled_params():
            assert not same(weights(model), sample)
        assert same(weights(model), sample)

    def test_exception_restores_mean_and_gradients(self):
        model, optimizer = make()
        with optimizer.sampled_params(train=True):
            loss_of(model, batch(0)).backward()
        mean, grads = weights(model), [p.grad.clone() for p in model.parameters()]
        with pytest.raises(MemoryError), optimizer.sampled_params(train=True):
            loss_of(model, batch(1)).backward()
            raise MemoryError
        assert same(weights(model), mean)
        assert same([p.grad for p in model.parameters()], grads)
        optimizer.step()

    def test_nesting_and_mixing_are_refused(self):
        model, optimizer = make()
        nested = pytest.raises(TrainingError, match="cannot be nested")
        with optimizer.sampled_params(), nested, optimizer.sampled_params():
            pass
        optimizer.train()
        with pytest.raises(TrainingError, match="use one of the two"), optimizer.sampled_params(train=True):
            pass
        optimizer.eval()
        with optimizer.sampled_params(train=True):
            optimizer.train()  # Trainer calls it anyway: no second draw
            loss_of(model, batch(0)).backward()
        with pytest.raises(TrainingError, match="use one of the two"):
            optimizer.train()

    def test_clearing_the_gradients_after_the_contexts_is_refused(self):
        model, optimizer = make()
        with optimizer.sampled_params(train=True):
            loss_of(model, batch(0)).backward()
        optimizer.zero_grad()
        with pytest.raises(TrainingError, match="all were cleared before step"):
            optimizer.step()
        one_step(model, optimizer, 0)  # and the next step is clean
