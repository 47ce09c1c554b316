"""Weights per module by regular expression, through whole adapters."""

import pytest
import torch
from merge_cases import make_adapter, peft_deltas, saved_tensors, tiny_bert, tiny_llama, two
from safetensors.torch import load_file

from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.merge.run import merge_with_report
from vlora.merge.weights import check_weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folders, posteriors = two(tmp_path_factory.mktemp("pair"))
    return folders, posteriors, [peft_deltas(f) for f in folders]


def test_the_first_pattern_that_matches_counts():
    weights = check_weights([1.0, 2.0], 2, [{"q_proj$": 0.5, r"layers\.0\.": -1.0}, {}])
    assert weights.of("model.layers.0.self_attn.q_proj") == [0.5, 2.0]
    assert weights.of("model.layers.0.self_attn.v_proj") == [-1.0, 2.0]
    assert weights.of("model.layers.1.mlp.down_proj") == [1.0, 2.0]


def test_every_module_gets_its_own_sum(pair, tmp_path):
    _, posteriors, deltas = pair
    patterns = [{r"layers\.0\.": 0.5, "q_proj": -1.0}, {"down_proj": 0}]
    merged, report = merge_with_report(
        posteriors, method="task_arithmetic", weights=[1.0, 2.0], module_weights=patterns, rank="lossless"
    )
    merged.save_pretrained(tmp_path / "m")
    assert report.adapters[0]["module_weights"] == patterns[0]
    assert "module_weights" not in merge_with_report(posteriors, method="linear")[1].adapters[0]
    for module, found in peft_deltas(tmp_path / "m").items():
        first = 0.5 if "layers.0." in module else (-1.0 if "q_proj" in module else 1.0)
        second = 0.0 if "down_proj" in module else 2.0
        expected = first * deltas[0][module] + second * deltas[1][module]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert report.modules[module]["rank"] == (2 if second == 0 else 4)


def test_a_mean_divides_by_the_weights_of_its_module(pair, tmp_path):
    _, posteriors, deltas = pair
    merged = merge_adapters(
        posteriors, method="linear", module_weights=[{"v_proj": 3.0}, {}], rank="lossless"
    )
    merged.save_pretrained(tmp_path / "m")
    for module, found in peft_deltas(tmp_path / "m").items():
        share = 0.75 if "v_proj" in module else 0.5
        expected = share * deltas[0][module] + (1 - share) * deltas[1][module]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_adapter_with_weights_per_module_is_not_returned_as_it_was(pair, tmp_path):
    _, posteriors, deltas = pair
    merged = merge_adapters(posteriors[:1], method="task_arithmetic", module_weights=[{"v_proj": 0.5}])
    merged.save_pretrained(tmp_path / "m")
    for module, found in peft_deltas(tmp_path / "m").items():
        factor = 0.5 if "v_proj" in module else 1.0
        torch.testing.assert_close(found, factor * deltas[0][module], rtol=1e-5, atol=1e-6)


def test_fully_trained_tensors_have_weights_too(tmp_path):
    lora = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    folders, posteriors = two(tmp_path, tiny_bert, lora, lora)
    merged = merge_adapters(posteriors, method="linear", module_weights=[{"classifier": 3.0}, {}])
    merged.save_pretrained(tmp_path / "m")
    key = "base_model.model.classifier.weight"
    first, second, found = (saved_tensors(f)[key] for f in (*folders, tmp_path / "m"))
    torch.testing.assert_close(found, 0.75 * first + 0.25 * second)
    only = merge_adapters(posteriors, method="linear", module_weights=[{"classifier": 0}, {}])
    torch.testing.assert_close(only.mean[key], second)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            [{"k_proj": 1.0}, {}],
            "'adapter 0': the pattern 'k_proj' of module_weights matches none of 6 modules",
        ),
        ([{}, {"q_(": 1.0}], r"'q_\(' is not a regular expression"),
        ([{"q_proj": float("nan")}, {}], "the weight of 'q_proj' is nan; give a finite number"),
        ([{"q_proj": 1.0}], "expected module_weights for 2 adapters, got 1"),
        (
            [{"v_proj": 0}, {"_proj": 0}],
            "down_proj: module_weights give 0 to every|v_proj: module_weights give 0 to",
        ),
    ],
)
def test_bad_patterns_are_one_line(pair, patterns, message):
    with pytest.raises(ConfigError, match=message) as caught:
        merge_adapters(pair[1], method="linear", module_weights=patterns)
    assert "\n" not in str(caught.value)


def test_the_program_takes_them_from_its_file(tmp_path):
    folders = [make_adapter(tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    adapters = [{"path": str(folders[0]), "module_weights": {"q_proj": 0.25}}, {"path": str(folders[1])}]
    settings = {"method": "task_arithmetic", "adapters": adapters, "rank": "lossless"}
    output = run_merge(load_config(MergeConfig, {**settings, "output": str(tmp_path / "out")}))
    first, second, found = (peft_deltas(f) for f in (*folders, output))
    module = "model.layers.1.self_attn.q_proj"
    expected = 0.25 * first[module] + second[module]
    torch.testing.assert_close(found[module], expected, rtol=1e-5, atol=1e-6)
    assert load_config(MergeConfig, output / "merge.yaml").adapters[0].module_weights == {"q_proj": 0.25}


@pytest.mark.parametrize("into", ["adapter", "model"])
def test_members_of_a_group_share_their_weights_per_module(pair, tmp_path, into):
    """Twice the same seed in a group is that seed once, in every module, as it is with a plain weight."""
    folders, _, _ = pair
    settings = {"weight": 0.8, "module_weights": {"q_proj": 0.5, "down_proj": [0.2, 1.0]}}
    other = {"path": str(folders[1])}
    twice = [{"path": str(folders[0]), "group": "g", **settings}] * 2
    merged = []
    for number, adapters in enumerate(([{"path": str(folders[0]), **settings}, other], [*twice, other])):
        values = {"method": "task_arithmetic", "adapters": adapters, "output": str(tmp_path / str(number))}
        if into == "model":
            tiny_llama().save_pretrained(tmp_path / "base")
            config = load_config(
                ModelMergeConfig, {**values, "into": "model", "base_model": str(tmp_path / "base")}
            )
            merged.append(load_file(run_model_merge(config) / "model.safetensors"))
        else:
            config = load_config(MergeConfig, {**values, "rank": "lossless"})
            assert config.module_weights()[0]["down_proj"] == [0.2 / (1 + number), 1.0 / (1 + number)]
            merged.append(peft_deltas(run_merge(config)))
    assert merged[0].keys() == merged[1].keys()
    for name, found in merged[1].items():
        torch.testing.assert_close(found, merged[0][name], rtol=1e-4, atol=1e-5)
