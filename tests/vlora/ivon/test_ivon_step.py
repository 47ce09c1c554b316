"""The pure functions of vlora.ivon.step against hand-made numbers and closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.ivon.step import (
    effective_lr,
    hessian_estimate_gradsq,
    hessian_estimate_reparam,
    ivon_step,
    posterior_std,
    update_hess,
    update_mean,
    update_momentum,
)

F64 = torch.float64


def scalar(value):
    return torch.tensor([value], dtype=F64)


def test_posterior_std_by_hand():
    assert posterior_std(scalar(0.3), ess=1000, weight_decay=0.1).item() == pytest.approx(1 / 20)


def test_one_step_by_hand():
    # h + delta = .5, product n g = .02, f = 10 * .5 * .02 = .1; all numbers worked out on paper
    mean, momentum, hess = ivon_step(
        scalar(2.0), scalar(0.5), scalar(0.4), scalar(1.0), scalar(0.02),
        step=2, lr=0.1, ess=10, weight_decay=0.1, beta1=0.5, beta2=0.9,
    )  # fmt: skip
    assert momentum.item() == pytest.approx(0.75)
    new_hess = 0.9 * 0.4 + 0.1 * 0.1 + 0.5 * 0.01 * 0.3**2 / 0.5  # .3709
    assert hess.item() == pytest.approx(new_hess)
    assert mean.item() == pytest.approx(2.0 - 0.1 * (0.75 / 0.75 + 0.2) / (new_hess + 0.1))


def test_clip_bounds_each_entry():
    mean = torch.zeros(3, dtype=F64)
    momentum = torch.tensor([5.0, -5.0, 0.001], dtype=F64)
    new = update_mean(
        mean, momentum, torch.ones(3, dtype=F64), step=1, lr=0.1, beta1=0.9, weight_decay=0.0, clip_radius=0.5,
        debias=False,
    )  # fmt: skip
    torch.testing.assert_close(new, torch.tensor([-0.05, 0.05, -0.0001], dtype=F64))


def test_debias_undoes_the_zero_start():
    momentum = update_momentum(scalar(0.0), scalar(3.0), 0.9)
    new = update_mean(scalar(0.0), momentum, scalar(1.0), step=1, lr=1.0, beta1=0.9, weight_decay=0.0)
    assert new.item() == pytest.approx(-3.0)


def test_effective_lr():
    assert effective_lr(0.2, hess_init=0.5, weight_decay=0.1, rescale_lr=True) == pytest.approx(0.12)
    assert effective_lr(0.2, hess_init=0.5, weight_decay=0.1, rescale_lr=False) == 0.2


def test_reparam_estimate_is_unbiased_for_a_quadratic():
    true_hess = torch.tensor([0.1, 1.0, 5.0], dtype=F64)
    hess = torch.full((3,), 2.0, dtype=F64)  # deliberately not the true one
    g = torch.Generator().manual_seed(0)
    std = posterior_std(hess, ess=50, weight_decay=0.1)
    noise = torch.randn(400_000, 3, generator=g, dtype=F64) * std
    grad = true_hess * (noise + 0.02)
    f = hessian_estimate_reparam((noise * grad).mean(0), hess, ess=50, weight_decay=0.1)
    torch.testing.assert_close(f, true_hess, rtol=0.01, atol=0)


def test_gradsq_with_batch_size_is_the_mean_squared_example_gradient():
    g = torch.Generator().manual_seed(1)
    examples = torch.randn(16, 20_000, 3, generator=g, dtype=F64) * torch.tensor([0.5, 1, 2], dtype=F64)
    batch_grad = examples.mean(0)  # 20,000 batches of 16
    unbiased = hessian_estimate_gradsq(batch_grad.square().mean(0), ess=1e6, grad_batch_size=16)
    torch.testing.assert_close(unbiased, examples.square().mean((0, 1)), rtol=0.03, atol=0)
    published = hessian_estimate_gradsq(batch_grad.square().mean(0), ess=1e6)
    torch.testing.assert_close(published / unbiased, torch.full((3,), 1e6 / 16, dtype=F64))


@settings(deadline=None, max_examples=200)
@given(
    hess=st.floats(-0.09, 10), sample=st.floats(-1e6, 1e6), beta2=st.floats(0, 0.99999), delta=st.floats(0.1, 1)
)  # fmt: skip
def test_retraction_keeps_the_precision_positive(hess, sample, beta2, delta):
    new = update_hess(scalar(hess), scalar(sample), beta2=beta2, weight_decay=delta)
    assert new.item() + delta > 0


def test_inputs_are_not_modified():
    tensors = [scalar(v) for v in (1.0, 0.2, 0.5, 0.3, 0.01)]
    kept = [t.clone() for t in tensors]
    ivon_step(*tensors, step=1, lr=0.1, ess=10, weight_decay=0.1, beta1=0.9, beta2=0.9)
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
