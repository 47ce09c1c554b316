"""Whole posteriors: what a merge does to the uncertainty, and taking an adapter out again."""

from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, peft_deltas, tiny_llama, two
from peft import PeftModel

from vlora.merge.run import merge_adapters, merge_with_report
from vlora.merge.unmerge.remove import remove_adapter
from vlora.posterior import Posterior


def make_posteriors(tmp_path, curvature=True, **kwargs):
    _, plain = two(tmp_path)
    posteriors = [add_posterior(p, seed, **kwargs) for seed, p in enumerate(plain, 1)]
    return [add_curvature(p, 50 * s) for s, p in enumerate(posteriors)] if curvature else posteriors


@pytest.mark.parametrize("curvature", ["kronecker", "separable"])
@pytest.mark.parametrize("rank", ["keep", 3])
def test_a_merge_is_a_posterior_that_can_be_saved_sampled_and_merged_again(tmp_path, curvature, rank):
    first, second = make_posteriors(tmp_path, ess=400.0)
    merged = merge_adapters([first, second], curvature=curvature, rank=rank)
    merged.save_pretrained(tmp_path / "merged")
    loaded = Posterior.from_pretrained(tmp_path / "merged")
    assert loaded.meta.num_examples == 200
    assert loaded.meta.ess == 800.0
    assert loaded.temperature == pytest.approx(first.temperature)
    assert loaded.hess.keys() == loaded.mean.keys()
    assert [s["weight"] for s in loaded.meta.sources] == [1.0, 1.0]
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "merged")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        at_mean = model(input_ids=ids).logits
        with loaded.sampled(model, 0):
            drawn = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
    assert torch.equal(at_mean, again)
    assert not torch.allclose(at_mean, drawn)
    twice = merge_adapters(
        [loaded, first], curvature=curvature, rank=4 if curvature == "separable" else "lossless"
    )
    assert all(torch.isfinite(value).all() for value in twice.mean.values())
    assert twice.meta.sources[0]["sources"] == loaded.meta.sources


def test_precision_of_a_lossless_sum_is_that_of_the_scaled_draws(tmp_path):
    first, second = make_posteriors(tmp_path, ess=400.0)
    merged = merge_adapters([first, second], method="task_arithmetic", weights=[1.0, 0.5], rank="lossless")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    std = merged.std()[key]
    torch.testing.assert_close(std[:, :2], 3.0 * first.std()[key], rtol=1e-4, atol=0)  # alpha / r = 3
    torch.testing.assert_close(std[:, 2:], 1.5 * second.std()[key], rtol=1e-4, atol=0)
    a = key.replace("lora_B", "lora_A")
    torch.testing.assert_close(
        merged.std()[a], torch.cat([first.std()[a], second.std()[a]]), rtol=1e-4, atol=0
    )


def test_precision_of_a_sum_is_exact_although_weights_and_priors_differ(tmp_path):
    """wd is one number per tensor, blocks are not: the precision as a whole still is that of the draws."""
    first, second = make_posteriors(tmp_path, ess=100.0)
    meta = replace(second.meta, weight_decay=5.0)
    second = replace(second, meta=meta)
    merged = merge_adapters([first, second], method="task_arithmetic", weights=[1.0, 0.1], rank="lossless")
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    torch.testing.assert_close(merged.std()[key][:, :2], 3.0 * first.std()[key], rtol=1e-4, atol=0)
    torch.testing.assert_close(merged.std()[key][:, 2:], 0.3 * second.std()[key], rtol=1e-4, atol=0)
    assert merged.hess[key].min() > 0


def test_different_temperatures_are_pooled_and_said(tmp_path):
    _, plain = two(tmp_path)
    cold, warm = add_posterior(plain[0], 1, ess=1e4), add_posterior(plain[1], 2, num_examples=300, ess=300.0)
    merged, report = merge_with_report([cold, warm], method="linear", rank="lossless")
    assert merged.temperature == pytest.approx(400 / 10300)
    assert any("temperatures N / ess of the inputs range from 0.01 to 1" in note for note in report.notes)


def test_settings_per_tensor_are_respected(tmp_path):
    """ess and weight_decay may be one number per key, as parameter groups of the optimizer have them."""
    first, second = make_posteriors(tmp_path, curvature=False)
    decay = {key: 0.1 * number for number, key in enumerate(first.hess, 1)}
    ess = dict.fromkeys(first.hess, 200.0)
    first = replace(first, meta=replace(first.meta, weight_decay=decay, ess=ess))
    merged = merge_adapters([first, second], method="linear", rank="lossless")
    assert merged.meta.ess == 300.0
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    untempered = 100 * (first.hess[key] + decay[key])  # N (h + wd), whatever ess is
    found = merged.meta.num_examples * (merged.hess[key] + merged.meta.of("weight_decay", key))
    torch.testing.assert_close(found[:2], untempered, rtol=1e-4, atol=0)


def frozen_pair(tmp_path):
    """Two posteriors with one frozen A."""
    _, (first, second) = two(tmp_path)
    shared = {k: (first.mean[k] if "lora_A" in k else v) for k, v in second.mean.items()}
    second = Posterior(shared, {}, second.meta, second.adapter_config)
    return add_posterior(first, 1, frozen_a=True), add_posterior(second, 2, frozen_a=True)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_frozen_a_merge_then_remove_returns_the_input(tmp_path, weight):
    first, second = frozen_pair(tmp_path)
    merged, report = merge_with_report([first, second], weights=[1.0, weight])
    assert {v["curvature"] for v in report.modules.values()} == {"sites"}
    assert not report.notes
    merged.save_pretrained(tmp_path / "merged")
    loaded = Posterior.from_pretrained(tmp_path / "merged")
    left = remove_adapter(loaded, second, weight=weight)
    for key, value in first.mean.items():
        torch.testing.assert_close(left.mean[key], value, rtol=1e-4, atol=1e-5)
    for key, value in first.hess.items():
        torch.testing.assert_close(left.hess[key], value, rtol=1e-4, atol=1e-5)
    assert left.meta.num_examples == first.meta.num_examples
    assert left.meta.ess == pytest.approx(first.meta.ess)
    assert left.meta.weight_decay == pytest.approx(first.meta.weight_decay)
    assert left.meta.sources[0]["name"] == "adapter 0"
    assert left.adapter_config["r"] == first.adapter_config["r"]


def test_the_site_of_a_merge_is_the_sum_of_sites(tmp_path):
    first, second = frozen_pair(tmp_path)
    merged = merge_adapters([first, second])
    total = first.site() + second.site()
    for key, value in total.precision.items():
        torch.testing.assert_close(merged.site().precision[key], value, rtol=1e-4, atol=1e-4)
    prior = first.meta.num_examples * first.meta.weight_decay
    for key, value in total.natural_mean.items():
        expected = value / (total.precision[key] + prior)
        torch.testing.assert_close(merged.mean[key], expected, rtol=1e-4, atol=1e-5)


def test_order_of_whole_adapters_does_not_matter(tmp_path):
    posteriors = make_posteriors(tmp_path)
    deltas = []
    for order in ((0, 1), (1, 0)):
        merged = merge_adapters(
            [posteriors[i] for i in order], weights=[[1.0, 0.4][i] for i in order], rank=2
        )
        merged.save_pretrained(tmp_path / "merged")
        deltas.append(peft_deltas(tmp_path / "merged"))
    for module, delta in deltas[0].items():
        torch.testing.assert_close(deltas[1][module], delta, rtol=1e-4, atol=1e-5)
