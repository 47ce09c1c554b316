"""The quadratic model of a task against dense matrices, a merge that was built, and drawn posteriors."""

from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, gram, make_update, positive, rand, two

from vlora.merge import merge_adapters
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.quadratic import increase, metric_of, product
from vlora.merge.preview.build import build_model


def dense(metric, m, n):
    """S and G written out."""

    def expand(x, size):
        if x is None:
            return torch.eye(size, dtype=torch.float64)
        return torch.diag(x) if x.ndim == 1 else x

    return expand(metric.output, m), expand(metric.input, n)


def test_products_are_those_of_the_dense_matrices():
    for settings in ({}, {"grams": False}, {"grams": False, "hess": False}, {"hess": False}):
        one, two_ = make_update(1, **settings), make_update(20, r=3, **settings)
        metric = metric_of(one)
        s, g = dense(metric, 7, 9)
        expected = metric.scale * torch.trace(s @ one.delta() @ g @ two_.delta().mT)
        assert product(metric, one, two_) == pytest.approx(expected.item(), rel=1e-10)
        gap = one.delta() - two_.delta()
        assert increase(metric, one, two_) == pytest.approx(
            0.5 * metric.scale * torch.trace(s @ gap @ g @ gap.mT).item()
        )
        kinds = {(True, True): "kronecker", (False, True): "separable", (False, False): "isotropic"}
        assert metric.kind == kinds.get(
            (settings.get("grams", True), settings.get("hess", True)), "kronecker"
        )


def test_the_scale_of_the_grams_is_found_from_h():
    """h pulled back from c S (x) G, with trained and with frozen A, whatever the stored scale of the Grams."""
    m, n, r, scale, c = 7, 9, 2, 2.0, 31.0
    s, g = gram(m, 1), gram(n, 2)
    s, g = s * m / s.trace(), g * n / g.trace()
    b, a = rand(m, r, seed=3), rand(r, n, seed=4)
    h_b = c * scale**2 * torch.outer(s.diagonal(), (a @ g @ a.mT).diagonal())
    h_a = c * scale**2 * torch.outer((b.mT @ s @ b).diagonal(), g.diagonal())
    update = replace(make_update(1, m, n, r, scale), b=b, a=a, input_gram=5 * g, output_gram=0.1 * s)
    update = replace(update, precision_b=h_b + 0.01, precision_a=h_a + 0.01)
    unit = 1 / (5 * 0.1)  # the scale of the stored Grams goes with c
    assert metric_of(update).scale == pytest.approx(unit * c)
    assert metric_of(replace(update, precision_a=None)).scale == pytest.approx(unit * c)
    plain = replace(update, precision_b=None)
    assert metric_of(update, absolute=False).scale == metric_of(plain).scale == pytest.approx(unit)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    _, plain = two(tmp_path_factory.mktemp("preview"))
    return [add_curvature(add_posterior(p, seed), 50 * seed) for seed, p in enumerate(plain, 1)]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 1.4), (0.0, 1.0), (-0.5, 0.7)])
def test_a_preview_is_the_quadratic_at_the_merge_that_was_built(pair, weights):
    inputs = read_inputs(pair, ["a", "b"])
    model = build_model(inputs, ["a", "b"], scale=0.8)
    predicted, _ = model.predict(torch.tensor([weights], dtype=torch.float64))
    kept = [(p, w) for p, w in zip(pair, weights, strict=True) if w]
    merged = merge_adapters(
        [p for p, _ in kept],
        weights=[w for _, w in kept],
        method="task_arithmetic",
        scale=0.8,
        rank="lossless",
    )
    built = read_inputs([merged], ["m"])
    for task in (0, 1):
        total = 0.0
        for module in inputs.modules:
            own = inputs.update(task, module)
            metric = metric_of(own)
            s, g = dense(metric, *own.delta().shape)
            gap = built.update(0, module).delta() - own.delta()
            total += 0.5 * metric.scale * torch.trace(s @ gap @ g @ gap.mT).item()
        assert predicted[0, task].item() == pytest.approx(total, rel=1e-5)  # the merge is stored in float32
    torch.testing.assert_close(model.without(), model.predict(torch.zeros(1, 2, dtype=torch.float64))[0][0])


@pytest.mark.parametrize("frozen", [True, False])
def test_the_variance_is_that_of_drawn_posteriors(tmp_path, frozen):
    """Frozen A: the noise is Gaussian in the update and the formula exact. Trained A: for noise that is small."""
    _, plain = two(tmp_path)
    count = 30 if frozen else 3000
    pair = [
        add_curvature(add_posterior(p, s, frozen_a=frozen, num_examples=count, ess=count), 50 * s)
        for s, p in enumerate(plain, 1)
    ]
    inputs = read_inputs(pair, ["a", "b"])
    module = inputs.modules[0]
    keys = inputs.keys_of(module)
    only = [
        replace(
            p,
            mean={k: p.mean[k] for k in (keys.a, keys.b)},
            hess={k: v for k, v in p.hess.items() if k in (keys.a, keys.b)},
        )
        for p in pair
    ]
    inputs = read_inputs(only, ["a", "b"])
    weights = torch.tensor([[0.6, 1.1]], dtype=torch.float64)
    _, variance = build_model(inputs, ["a", "b"]).predict(weights)
    assert variance is not None
    updates = inputs.updates(module)
    generator = torch.Generator().manual_seed(1)
    draws = 4000

    def noisy(mean, precision):
        noise = torch.randn(draws, *mean.shape, generator=generator, dtype=torch.float64)
        return mean.expand(draws, *mean.shape) if precision is None else mean + noise * precision.rsqrt()

    deltas = [u.scale * noisy(u.b, u.precision_b) @ noisy(u.a, u.precision_a) for u in updates]
    for task, own in enumerate(updates):
        metric = metric_of(own)
        s, g = dense(metric, *own.delta().shape)
        gap = 0.6 * deltas[0] + 1.1 * deltas[1] - deltas[task]
        values = 0.5 * metric.scale * ((s @ gap @ g) * gap).sum((-2, -1))
        assert values.var().item() == pytest.approx(variance[0, task].item(), rel=0.12)


def test_members_of_a_task_are_averaged_and_their_spread_counts(pair):
    third = replace(
        pair[0], mean={k: v + 0.05 * positive(*v.shape, seed=3).float() for k, v in pair[0].mean.items()}
    )
    model = build_model(read_inputs([pair[0], third, pair[1]], ["a1", "a2", "b"]), ["a", "a", "b"])
    assert model.tasks == ["a", "b"] and model.members == [[0, 1], [2]]
    weights = torch.tensor([[0.9, 0.4]], dtype=torch.float64)
    assert model.coefficients(weights).tolist() == [[0.45, 0.45, 0.4]]
    alone = build_model(read_inputs([pair[0], third, pair[1]], ["a1", "a2", "b"]), ["a1", "a2", "b"])
    means, variances = alone.predict(torch.tensor([[0.45, 0.45, 0.4]], dtype=torch.float64))
    mean, variance = model.predict(weights)
    assert mean[0, 0].item() == pytest.approx(means[0, :2].mean().item())
    assert variance is not None and variances is not None
    expected = variances[0, :2].mean() + means[0, :2].var(correction=0)
    assert variance[0, 0].item() == pytest.approx(expected.item())


def test_without_a_posterior_there_is_no_variance(tmp_path):
    _, plain = two(tmp_path)
    model = build_model(read_inputs(plain, ["a", "b"]), ["a", "b"])
    assert model.predict(torch.ones(1, 2, dtype=torch.float64))[1] is None
