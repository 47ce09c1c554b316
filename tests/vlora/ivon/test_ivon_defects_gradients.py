"""Known defects of ivon-opt 0.1.3 in what happens to gradients: accumulation, clipping, loss scaling."""

import ivon
import pytest
import torch
from ivon_problems import SETTINGS, backward, param

from vlora import IVON


def test_row_6_gradient_accumulation():
    """ivon-opt averages the running sums of ``p.grad`` over micro-steps, so 4 micro-batches give a wrong gradient."""
    pieces = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    true_grad = pieces.mean()

    def micro(w, i):
        (w.sum() * pieces[i] / 4).backward()  # loss / GA, as Trainer and accelerate scale it

    w = param(1, dtype=torch.float64)
    oracle = ivon.IVON([w], beta1=0.0, **SETTINGS)
    for i in range(4):
        with oracle.sampled_params(train=True):
            micro(w, i)
    oracle.step()
    assert abs(oracle.param_groups[0]["momentum"].item() / true_grad - 1) > 0.3
    w = param(1, dtype=torch.float64)
    optimizer = IVON([w], beta1=0.0, **SETTINGS)
    for i in range(4):
        optimizer.train()
        micro(w, i)
    optimizer.step()
    assert optimizer.state[w]["momentum"].item() == pytest.approx(true_grad.item())
    optimizer.zero_grad()
    with optimizer.sampled_params(train=True):  # several backward passes of one draw add up here too
        for i in range(4):
            micro(w, i)
    optimizer.step()
    assert optimizer.state[w]["momentum"].item() == pytest.approx(true_grad.item())


def test_row_7_gradient_clipping():
    """ivon-opt has taken the gradients when its context ends, so clipping after backward changes nothing."""

    def run(kind, max_norm):
        torch.manual_seed(0)
        w = param(3)
        optimizer = (ivon.IVON if kind == "ivon-opt" else IVON)([w], weight_decay=0.0, **SETTINGS)
        if kind == "train":
            optimizer.train()
            backward(w)
        else:
            with optimizer.sampled_params(train=True):
                backward(w)
        torch.nn.utils.clip_grad_norm_([w], max_norm)
        optimizer.step()
        return w.detach()

    assert torch.equal(run("ivon-opt", 1.0), run("ivon-opt", 1e-9))
    for kind in ("train", "contexts"):
        assert run(kind, 1e-9).abs().max() < 1e-8
        assert run(kind, 1.0).abs().max() > 0.01


def test_row_8_loss_scaling():
    """ivon-opt takes scaled gradients, so GradScaler makes its first step 65536 times too long."""

    def run(kind, scaling):
        torch.manual_seed(0)
        w = param(3, dtype=torch.float64)
        optimizer = (ivon.IVON if kind == "ivon-opt" else IVON)([w], **SETTINGS)
        scaler = torch.amp.GradScaler("cpu", enabled=scaling)
        if kind == "train":
            optimizer.train()
            scaler.scale((w - 1).square().sum()).backward()
        else:
            with optimizer.sampled_params(train=True):
                scaler.scale((w - 1).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        hess = optimizer.param_groups[0]["hess"] if kind == "ivon-opt" else optimizer.state[w]["hess"]
        return w.detach(), hess

    assert run("ivon-opt", True)[0].abs().max() > 100 * run("ivon-opt", False)[0].abs().max()
    for kind in ("train", "contexts"):
        for scaled, plain in zip(run(kind, True), run(kind, False), strict=True):
            torch.testing.assert_close(scaled, plain, rtol=1e-10, atol=0)


@pytest.mark.parametrize("unscale", [False, True])
def test_row_8b_overflow_is_skipped_and_forgotten(unscale):
    """ivon-opt never resets its averages after a skipped step, so one overflow makes the parameters NaN."""

    def run(optimizer, w, begin):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            begin(lambda factor=factor: scaler.scale(factor * (w - 1).square().sum()).backward())
            if unscale and isinstance(optimizer, IVON):
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            yield

    def with_train(optimizer):
        def begin(go):
            optimizer.train()
            go()

        return begin

    def with_context(optimizer):
        def begin(go):
            with optimizer.sampled_params(train=True):
                go()

        return begin

    w = param()
    oracle = ivon.IVON([w], **SETTINGS)
    list(run(oracle, w, with_context(oracle)))
    assert w.isnan().all()
    for protocol in (with_train, with_context):
        w = param()
        optimizer = IVON([w], **SETTINGS)
        steps = run(optimizer, w, protocol(optimizer))
        next(steps)
        assert torch.equal(w.detach(), torch.zeros(3)), "the mean is back after the skipped step"
        assert torch.equal(optimizer.state[w]["hess"], torch.ones(3)) and int(optimizer.state[w]["step"]) == 0
        list(steps)
        assert w.isfinite().all() and int(optimizer.state[w]["step"]) == 1


def test_row_8b_unscale_after_several_draws():
    """ivon-opt needs ``unscale_`` inside each context, and GradScaler refuses the second call."""
    w = param(3, dtype=torch.float64)
    oracle, scaler = ivon.IVON([w], **SETTINGS), torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="already been called"):
        for _ in range(2):
            with oracle.sampled_params(train=True):
                scaler.scale((w - 1).square().sum()).backward()
                scaler.unscale_(oracle)

    def run(scaling):
        w = param(3, dtype=torch.float64)
        optimizer, scaler = IVON([w], **SETTINGS), torch.amp.GradScaler("cpu", enabled=scaling)
        for _ in range(2):
            with optimizer.sampled_params(train=True):
                scaler.scale((w - 1).square().sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([w], 0.5)
        scaler.step(optimizer)
        return w.detach(), optimizer.state[w]["hess"]

    for a, b in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)
