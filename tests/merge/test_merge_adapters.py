"""Whole adapters: what plain PEFT computes from a merged folder, for every way PEFT scales an adapter."""

import json
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from merge_cases import (
    add_curvature,
    add_posterior,
    make_adapter,
    peft_deltas,
    saved_tensors,
    tiny_bert,
    tiny_llama,
)
from peft import PeftModel

from vlora.merge.peft_layout import module_scaling, split_keys
from vlora.merge.remove import remove_adapter
from vlora.merge.run import merge_adapters, merge_with_report
from vlora.posterior import Posterior

SCALINGS = {
    "alpha_over_r": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 3, "^model.layers.1.mlp.down_proj": 1},
        "alpha_pattern": {"v_proj": 5, r"layers\.1\.self_attn\.q_proj": 9},
    },
    "rslora_and_patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"down_proj": 1},
    },
    "many": {"r": 4, "lora_alpha": 1, "target_modules": "all-linear"},
}


def two(tmp_path, base=tiny_llama, first=None, second=None):
    folders = [
        make_adapter(tmp_path / "a", 1, base=base, **(first or {})),
        make_adapter(tmp_path / "b", 2, base=base, **(second or {})),
    ]
    return folders, [Posterior.from_pretrained(f) for f in folders]


def expected_sum(folders, weights, base=tiny_llama):
    total = {}
    for folder, weight in zip(folders, weights, strict=True):
        for module, delta in peft_deltas(folder, base).items():
            total[module] = total.get(module, 0) + weight * delta
    return total


def assert_deltas(folder, expected, base=tiny_llama, **tolerance):
    found = peft_deltas(folder, base)
    assert found.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_is_resolved_as_peft_resolves_it(tmp_path, name):
    folder = make_adapter(tmp_path / "a", 1, **SCALINGS[name])
    model = PeftModel.from_pretrained(tiny_llama(), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    modules, rest = split_keys(saved_tensors(folder))
    assert not rest
    assert len(modules) >= 6
    for module in modules:
        layer = model.get_submodule(f"base_model.model.{module}")
        assert module_scaling(config, module) == pytest.approx(layer.scaling["default"])


@pytest.mark.parametrize(
    ("first", "second"), [*zip(SCALINGS, SCALINGS, strict=True), *combinations(SCALINGS, 2)]
)
def test_the_lossless_sum_is_what_peft_adds(tmp_path, first, second):
    folders, posteriors = two(tmp_path, first=SCALINGS[first], second=SCALINGS[second])
    merged = merge_adapters(posteriors, method="task_arithmetic", weights=[0.7, -1.3], rank="lossless")
    merged.save_pretrained(tmp_path / "merged")
    assert_deltas(tmp_path / "merged", expected_sum(folders, [0.7, -1.3]))


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "gradient_matching"])
def test_one_adapter_comes_back_bit_for_bit(tmp_path, method, name):
    folder = make_adapter(tmp_path / "a", 1, **SCALINGS[name])
    posterior = add_posterior(Posterior.from_pretrained(folder), 1)
    merged = merge_adapters([posterior], method=method, weights=[1.0])
    for key, value in posterior.mean.items():
        assert torch.equal(merged.mean[key], value)
        assert torch.equal(merged.hess[key], posterior.hess[key])
    assert merged.adapter_config == posterior.adapter_config
    assert merged.meta.ess == posterior.meta.ess


def test_keeping_the_rank_writes_a_configuration_that_peft_loads(tmp_path):
    pattern = SCALINGS["patterns"]
    folders, posteriors = two(tmp_path, first=pattern, second={**pattern, "lora_alpha": 3})
    merged, report = merge_with_report(posteriors, method="linear", rank="keep")
    merged.save_pretrained(tmp_path / "merged")
    for module, delta in expected_sum(folders, [0.5, 0.5]).items():
        rank = report.modules[module]["rank"]
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(peft_deltas(tmp_path / "merged")[module], best, rtol=1e-4, atol=1e-5)
        kept = (s[:rank].square().sum() / s.square().sum()).item()
        assert report.modules[module]["retained_energy"] == pytest.approx(kept, abs=1e-5)
    assert {v["rank"] for v in report.modules.values()} == {1, 2, 3}


def test_modules_that_only_one_adapter_has_are_kept(tmp_path):
    folders, posteriors = two(
        tmp_path,
        first={"target_modules": ["q_proj"]},
        second={"target_modules": ["v_proj", "q_proj"], "r": 3},
    )
    merged, report = merge_with_report(posteriors, method="linear", rank="lossless", names=["one", "two"])
    merged.save_pretrained(tmp_path / "merged")
    assert_deltas(tmp_path / "merged", expected_sum(folders, [0.5, 0.5]))
    assert any("one leaves 2 modules alone" in note for note in report.notes)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_heads_and_biases_are_averaged_whole(tmp_path, bias):
    lora = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", "bias": bias}
    folders, posteriors = two(tmp_path, tiny_bert, lora, {**lora, "lora_alpha": 2})
    merged, report = merge_with_report(
        posteriors, method="task_arithmetic", weights=[3.0, 1.0], rank="lossless"
    )
    merged.save_pretrained(tmp_path / "merged")
    assert_deltas(tmp_path / "merged", expected_sum(folders, [3.0, 1.0], tiny_bert), tiny_bert)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "merged")
    first, second, found = (saved_tensors(f) for f in (*folders, tmp_path / "merged"))
    heads = [key for key in found if "classifier" in key]
    assert heads
    for key in report.full_tensors:
        torch.testing.assert_close(found[key], 0.75 * first[key] + 0.25 * second[key])
    weight = loaded.base_model.model.classifier.modules_to_save["default"].weight
    torch.testing.assert_close(weight, found["base_model.model.classifier.weight"])
    biases = [key for key in found if key.endswith("query.bias") or key.endswith("base_layer.bias")]
    assert biases
    assert any("averaged, not summed" in note for note in report.notes)


def test_a_head_is_weighted_by_its_precision_when_uncertainty_is_asked_for(tmp_path):
    lora = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    _, plain = two(tmp_path, tiny_bert, lora, lora)
    first, second = add_posterior(plain[0], 1, num_examples=300), add_posterior(plain[1], 2)
    key = "base_model.model.classifier.weight"
    merged = merge_adapters([first, second], method="gradient_matching")
    p1 = 300 * (first.hess[key] + first.meta.weight_decay)
    p2 = 100 * (second.hess[key] + second.meta.weight_decay)
    expected = (p1 * first.mean[key] + p2 * second.mean[key]) / (p1 + p2)
    torch.testing.assert_close(merged.mean[key], expected)
    assert merged.meta.num_examples == 400
    torch.testing.assert_close(
        400 * merged.hess[key], 300 * first.hess[key] + 100 * second.hess[key], rtol=1e-4, atol=1e-6
    )


def test_embeddings_merge_like_linear_layers(tmp_path):
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        folders, posteriors = two(tmp_path, first=lora, second={**lora, "r": 3})
    merged = merge_adapters(posteriors, method="task_arithmetic", weights=[1.0, 2.0], rank="lossless")
    merged.save_pretrained(tmp_path / "merged")
    assert_deltas(tmp_path / "merged", expected_sum(folders, [1.0, 2.0]))
    key = "base_model.model.model.embed_tokens.base_layer.weight"  # the base's own, equal in both: untouched
    assert torch.equal(merged.mean[key], posteriors[0].mean[key])


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


def test_half_precision_adapters_stay_half_precision(tmp_path):
    _, posteriors = two(tmp_path)
    half = [
        Posterior({k: v.bfloat16() for k, v in p.mean.items()}, {}, p.meta, p.adapter_config)
        for p in posteriors
    ]
    merged = merge_adapters(half, method="linear", rank="lossless")
    assert {v.dtype for v in merged.mean.values()} == {torch.bfloat16}
