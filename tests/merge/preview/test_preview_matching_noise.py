"""Variances under gradient matching against drawn posteriors, closed forms, and the noise that sums have."""

from dataclasses import replace

import pytest
import torch
from merge_cases import gram, make_update, positive, rand

from vlora.grams import ShortGram
from vlora.merge.curvature.quadratic import metric_of
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.preview.matching import full_losses
from vlora.merge.preview.matching_noise import matching_noise, matching_variance
from vlora.merge.preview.noise import linear_noise, square_noise
from vlora.merge.preview.spread import Spread, noise_weightings
from vlora.merge.update import LoraUpdate

TAU, SCALE = 0.4, 0.9


def sharp(seed: int, frozen: bool = False, size: float = 3e4) -> LoraUpdate:
    update = make_update(seed, 6, 12, 2, a=rand(2, 12, seed=9) if frozen else None)
    precise = replace(update, precision_b=size * positive(6, 2, seed=seed))
    return precise if frozen else replace(precise, precision_a=size * positive(2, 12, seed=seed + 1))


@pytest.mark.parametrize("frozen", [True, False])
def test_it_is_the_variance_of_drawn_posteriors(frozen):
    """With much noise where A is frozen, so that the second term counts; with little where dB dA is left out."""
    updates = [sharp(seed, frozen, 30 if frozen else 3e4) for seed in (1, 20, 40)]
    weights = torch.tensor([[0.6, 1.1, 0.4], [0.0, 1.0, 0.0], [-0.5, 0.8, 1.0]], dtype=torch.float64)
    found = matching_variance(updates, [True] * 3, weights, TAU, SCALE, probes=500)
    generator, draws = torch.Generator().manual_seed(1), 3000

    def noisy(mean, precision):
        noise = torch.randn(draws, *mean.shape, generator=generator, dtype=torch.float64)
        return mean.expand(draws, *mean.shape) if precision is None else mean + noise * precision.rsqrt()

    deltas = [u.scale * noisy(u.b, u.precision_b) @ noisy(u.a, u.precision_a) for u in updates]
    eye = torch.eye(12, dtype=torch.float64)
    damped = [normalised_gram(u.input_gram, "here") + TAU * eye for u in updates]
    for row, expected in zip(weights, found, strict=True):
        total = TAU * eye + sum(abs(w) * (d - TAU * eye) for w, d in zip(row, damped, strict=True))
        merged = sum(w * x @ d for w, x, d in zip(row, deltas, damped, strict=True))
        merged = SCALE * merged @ torch.linalg.inv(total)
        for t, update in enumerate(updates):
            metric, gap = metric_of(update), merged - deltas[t]
            losses = 0.5 * metric.scale * ((metric.output @ gap @ metric.input) * gap).sum((-2, -1))
            assert losses.var().item() == pytest.approx(expected[t].item(), rel=0.12)


def test_with_grams_of_one_direction_strength_it_is_the_noise_of_a_sum():
    """All G = I: the merge is the sum with weights w (1 + tau) / (tau + sum w)."""
    eye = torch.eye(12, dtype=torch.float64)
    updates = [replace(sharp(seed), input_gram=eye) for seed in (1, 20)]
    weights = torch.tensor([0.7, 0.4], dtype=torch.float64)
    d = SCALE * weights * (1 + TAU) / (TAU + weights.sum())
    found = matching_variance(updates, [True] * 2, weights[None], TAU, SCALE, probes=1000)[0]
    for t, update in enumerate(updates):
        metric, gap = metric_of(update), d.clone()
        gap[t] -= 1.0
        k, r = linear_noise(metric, updates), square_noise(metric, updates)
        first = torch.einsum("s,suv,u,v->", gap.square(), k, gap, gap)
        second = 0.5 * torch.einsum("s,su,u->", gap.square(), r, gap.square())
        assert found[t].item() == pytest.approx((first + second).item(), rel=3e-3)


def test_the_gradient_is_that_of_the_loss():
    """First term against differences of the loss itself, entry by entry; no probe is drawn."""
    updates = [sharp(1), sharp(20)]
    weights = torch.tensor([[0.7, 1.2]], dtype=torch.float64)
    found = matching_variance(updates, [False] * 2, weights, TAU, SCALE, probes=0)[0]
    total = torch.zeros(2, dtype=torch.float64)
    kept = [metric_of(u, False) for u in updates]
    assert all(m.scale > 0 for m in kept)
    for s, update in enumerate(updates):
        for name in ("a", "b"):
            mean, variance = getattr(update, name), getattr(update, f"precision_{name}").reciprocal()
            for index in range(mean.numel()):
                step = torch.zeros(mean.numel(), dtype=torch.float64)
                step[index] = 1e-5
                sides = []
                for sign in (1, -1):
                    moved = list(updates)
                    moved[s] = replace(update, **{name: mean + sign * step.view_as(mean)})
                    sides.append(full_losses(moved, [False] * 2, weights, TAU, SCALE)[0])
                total += ((sides[0] - sides[1]) / 2e-5).square() * variance.flatten()[index]
    torch.testing.assert_close(found, total, rtol=1e-5, atol=0)


def test_short_grams_and_single_precision_give_the_same():
    vectors = torch.linalg.qr(rand(280, 3, seed=5)).Q
    short = ShortGram(vectors, torch.tensor([40.0, 20.0, 10.0], dtype=torch.float64), 0.3)
    thin, whole = (
        [
            replace(make_update(seed, 6, 280, 2), input_gram=g, output_gram=gram(6, seed))
            for seed, g in ((1, short_or_dense), (20, gram(280, 2)))
        ]
        for short_or_dense in (short, short.dense())
    )
    weights = torch.tensor([[0.7, 1.2], [0.2, 0.0]], dtype=torch.float64)
    first, second = (matching_noise(u, [True] * 2, weights, TAU, SCALE) for u in (thin, whole))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * second.max().item())


def test_standard_deviations_between_the_weightings_are_close():
    updates = [sharp(seed) for seed in (1, 20)]
    points = noise_weightings(2, 0.0, 1.5)
    assert len(points) == 21 and len(points.unique(dim=0)) == 21
    products = matching_noise(updates, [True] * 2, points, TAU, SCALE)
    losses = full_losses(updates, [True] * 2, points, TAU, SCALE)
    alone = full_losses(updates, [True] * 2, torch.zeros(1, 2, dtype=torch.float64), TAU, SCALE)[0]
    spread = Spread.of(points, products, losses, alone)
    there = products.diagonal(dim1=-2, dim2=-1).mT
    torch.testing.assert_close(
        spread.variance(points, losses), there, rtol=1e-6, atol=1e-9 * there.max().item()
    )
    other = 1.5 * torch.rand(50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = spread.variance(other, full_losses(updates, [True] * 2, other, TAU, SCALE)).sqrt()
    exact = matching_variance(updates, [True] * 2, other, TAU, SCALE).sqrt()
    assert ((found - exact).abs() / exact).median() < 0.02
    assert ((found - exact).abs() / exact.mean(0)).max() < 0.2


def test_a_box_on_both_sides_of_zero():
    points = noise_weightings(3, -1.0, 2.0)
    assert points.min() >= -1.0 and points.max() <= 2.0 and (points < -0.1).any()
