"""Signal-to-noise ratios of entries and rank components: closed forms, gauge, edges."""

from dataclasses import replace

import pruning_cases as cases
import pytest
import torch

from vlora.posterior.lora_layout import split_keys
from vlora.posterior.pruning import prune_entries
from vlora.posterior.signal import component_snr, entry_snr, factor_variances


@pytest.fixture
def posterior(tmp_path):
    return cases.make(tmp_path / "plain")


def first_module(posterior):
    return next(iter(split_keys(posterior.mean)[0].values()))


def test_component_moments_equal_those_of_many_draws(posterior):
    keys = first_module(posterior)
    std, generator = posterior.std(), torch.Generator().manual_seed(0)
    a, b = posterior.mean[keys.a].double(), posterior.mean[keys.b].double()
    draws_a = a + std[keys.a] * torch.randn(20_000, *a.shape, generator=generator)
    draws_b = b + std[keys.b] * torch.randn(20_000, *b.shape, generator=generator)
    snr = component_snr(posterior, keys, "stored")
    for k in range(len(a)):
        products = draws_b[:, :, k, None] * draws_a[:, k, None, :]
        signal, noise = products.mean(0).square().sum(), products.var(0).sum()
        assert snr[k].item() == pytest.approx((signal / noise).sqrt().item(), rel=0.02)


def test_stored_variances_are_those_of_the_draws(posterior):
    keys = first_module(posterior)
    for key, variance in zip((keys.a, keys.b), factor_variances(posterior, keys, "stored"), strict=True):
        torch.testing.assert_close(variance, posterior.std()[key].double() ** 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_balanced_ratios_do_not_depend_on_how_a_component_is_shared_out(tmp_path, weight_decay):
    posterior = cases.make(tmp_path / "p", weight_decay=weight_decay)
    keys = first_module(posterior)
    moved = cases.rescaled(posterior, keys.a, keys.b, torch.tensor([0.1, 1.0, 3.0, 20.0]))
    torch.testing.assert_close(component_snr(moved, keys), component_snr(posterior, keys), rtol=1e-5, atol=0)
    for key, ratio in entry_snr(posterior, keys).items():
        torch.testing.assert_close(entry_snr(moved, keys)[key], ratio, rtol=1e-5, atol=0)
    stored = [component_snr(p, keys, "stored") for p in (moved, posterior)]
    assert torch.allclose(*stored, rtol=1e-5) == (weight_decay == 0)


def test_both_gauges_agree_where_the_factors_are_balanced(posterior):
    keys = first_module(posterior)
    ratio = posterior.mean[keys.b].norm(dim=0) / posterior.mean[keys.a].norm(dim=1)
    balanced = cases.rescaled(posterior, keys.a, keys.b, ratio.sqrt())
    torch.testing.assert_close(
        component_snr(balanced, keys, "balanced"), component_snr(balanced, keys, "stored"), rtol=1e-5, atol=0
    )


def test_frozen_a_leaves_only_the_noise_of_b(posterior):
    keys = first_module(posterior)
    frozen = replace(posterior, hess={k: v for k, v in posterior.hess.items() if k != keys.a})
    b, noise = posterior.mean[keys.b].double(), frozen.std()[keys.b].double().square().sum(0)
    expected = (b.square().sum(0) / noise).sqrt()  # |b|^2 |a|^2 / (Vb |a|^2)
    torch.testing.assert_close(component_snr(frozen, keys, "stored"), expected, rtol=1e-5, atol=0)
    assert entry_snr(frozen, keys).keys() == {keys.b}


def test_pruned_entries_add_no_noise(posterior):
    keys, pruned = first_module(posterior), prune_entries(posterior, fraction=0.5).posterior
    for key, variance in zip((keys.a, keys.b), factor_variances(pruned, keys, "stored"), strict=True):
        torch.testing.assert_close(variance, pruned.std()[key].double() ** 2, rtol=1e-5, atol=0)
        assert (variance == 0).equal(pruned.mean[key] == 0)
    assert all(bool(torch.isfinite(ratio).all()) for ratio in entry_snr(pruned, keys).values())


def test_empty_components_and_flat_entries_have_no_signal_and_give_no_nan(tmp_path):
    posterior = cases.make(tmp_path / "p", weight_decay=1e-9)
    keys = first_module(posterior)
    mean, hess = dict(posterior.mean), dict(posterior.hess)
    mean[keys.b] = mean[keys.b].clone().index_fill(1, torch.tensor([1]), 0.0)
    hess[keys.a] = torch.zeros_like(hess[keys.a])
    changed = replace(posterior, mean=mean, hess=hess, meta=replace(posterior.meta, weight_decay=0.0))
    snr = component_snr(changed, keys)
    assert snr[1] == 0 and bool(torch.isfinite(snr).all())
    assert all(bool(torch.isfinite(ratio).all()) for ratio in entry_snr(changed, keys).values())
