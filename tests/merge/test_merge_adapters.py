"""Whole adapters: what plain PEFT computes from a merged folder, for every way PEFT scales an adapter."""

import json
from itertools import combinations

import pytest
import torch
from merge_cases import (
    add_posterior,
    make_adapter,
    peft_deltas,
    saved_tensors,
    tiny_bert,
    tiny_llama,
    two,
)
from peft import PeftModel

from vlora.merge.run import merge_adapters, merge_with_report
from vlora.posterior import Posterior
from vlora.posterior.lora_layout import module_scaling, split_keys

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


def test_half_precision_adapters_stay_half_precision(tmp_path):
    _, posteriors = two(tmp_path)
    half = [
        Posterior({k: v.bfloat16() for k, v in p.mean.items()}, {}, p.meta, p.adapter_config)
        for p in posteriors
    ]
    merged = merge_adapters(half, method="linear", rank="lossless")
    assert {v.dtype for v in merged.mean.values()} == {torch.bfloat16}
