"""Configurations that make other functions of equal shapes are refused, other differences noted."""

import json

import pytest
import torch
from checkpoint_cases import llama, merge, raw_model, save_model, settings

from vlora.errors import CheckpointError
from vlora.merge.checkpoints import make_plan
from vlora.merge.checkpoints.function_keys import function_changes

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}


def changed(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def plan(tmp_path, folders, **values):
    return make_plan(settings(tmp_path / "out", models=[{"path": str(path)} for path in folders], **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"num_attention_heads": 4, "head_dim": 3},
            r"differ in num_attention_heads, .*: 2 in 'a', 4 in 'b'; leave",
        ),
        (
            {"rms_norm_eps": 1e-3},
            r"differ in rms_norm_eps, which changes what the weights compute: 1e-06 in 'a'",
        ),
        (
            {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
            "rope_theta.*10000.0 in 'a', 5.0 in 'b'",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_type, .* 'default' in 'a', 'linear' in 'b'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act, .*: 'silu' in 'a', 'gelu' in 'b'"),
        ({"text_config": {"rms_norm_eps": 0.1}, "hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_another_function_of_equal_shapes_is_refused(tmp_path, values, message):
    first, second = (save_model(tmp_path / name, llama(seed)) for seed, name in enumerate("ab"))
    if "rope_scaling" in values:
        config = json.loads((second / "config.json").read_text())
        values = {**values, "rope_parameters": {}, "rope_theta": config["rope_parameters"]["rope_theta"]}
    changed(second, **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        plan(tmp_path, [first, second]).check()
    assert "\n" not in str(caught.value)


def test_it_can_be_allowed_and_other_differences_are_noted(tmp_path):
    first, second = (save_model(tmp_path / name, llama(seed)) for seed, name in enumerate("ab"))
    changed(second, rms_norm_eps=1e-3, eos_token_id=7)
    with pytest.raises(
        CheckpointError, match="add rms_norm_eps to allow_config_differences to keep that of 'a'"
    ):
        plan(tmp_path, [first, second]).check()
    models = [{"path": str(path)} for path in (first, second)]
    out = merge(tmp_path / "out", models=models, allow_config_differences=["rms_norm_eps"])
    assert json.loads((out / "config.json").read_text())["rms_norm_eps"] == 1e-6
    notes = json.loads((out / "merge.json").read_text())["notes"]
    assert notes == ["the configurations differ in rms_norm_eps, eos_token_id: the output has that of a"]


def test_forms_of_one_function_are_equal():
    old = {
        **LLAMA,
        "rope_theta": 5e5,
        "rope_scaling": {"type": "llama3", "rope_type": "llama3", "factor": 8.0},
    }
    new = {
        **LLAMA, "head_dim": 16, "num_key_value_heads": 4,
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0},
    }  # fmt: skip
    assert function_changes({"old": old, "new": new}) == {}
    assert function_changes({"old": {**LLAMA, "rope_theta": 1e4, "rope_scaling": None}, "bare": LLAMA}) == {}
    window = {"sliding_window": 4096}
    assert not function_changes(
        {"a": {**LLAMA, **window, "use_sliding_window": False}, "b": {**LLAMA, "sliding_window": None}}
    )
    assert function_changes({"a": {**LLAMA, **window}, "b": {**LLAMA, "sliding_window": None}})
    inner = [{"model_type": "x", "text_config": {"hidden_act": name}} for name in ("silu", "gelu")]
    assert function_changes(dict(zip("ab", inner, strict=True))) == {
        "text_config.hidden_act": {"a": "silu", "b": "gelu"}
    }


def test_a_tied_first_model_does_not_swallow_an_output_layer(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.randn(17, 4), "lm_head.weight": torch.randn(17, 4)}
    tied = raw_model(tmp_path / "tied", tensors, {"tie_word_embeddings": True})
    untied = raw_model(tmp_path / "untied", tensors)
    with pytest.raises(CheckpointError, match="tie_word_embeddings, .* True in 'tied', False in 'untied'"):
        plan(tmp_path, [tied, untied]).check()
    assert plan(tmp_path, [untied, tied]).problems == []
