"""Posteriors of every kind of LoRA adapter, and the lineage of adapters without a posterior."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from vlora import IVON, Posterior, PosteriorMeta
from vlora.errors import OutputError, PosteriorFormatError, TrainingError
from vlora.models import load_adapter


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A base model whose attention has biases."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def base(folder: Path) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("adapter_name", ["default", "second"])
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"use_rslora": True}, "lora_B.weight"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"bias": "lora_only"}, "base_layer.bias"),
        ({"bias": "all", "use_dora": True, "modules_to_save": ["lm_head"]}, "k_proj.bias"),
    ],
)
def test_every_trained_tensor_is_in_the_posterior_and_plain_peft_loads_the_mean(
    qwen, tmp_path, tokens, settings, kind, adapter_name
):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **settings)
    model = get_peft_model(base(qwen), lora, adapter_name=adapter_name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = IVON(trained, lr=0.1, ess=1e4, hess_init=0.1)
    for _ in range(2):
        optimizer.train()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=3, adapter_name=adapter_name)
    assert len(posterior.hess) == len(posterior.mean) == len(trained)
    assert any(kind in key for key in posterior.hess)
    posterior.save_pretrained(tmp_path / "out")
    plain = PeftModel.from_pretrained(base(qwen), str(tmp_path / "out")).eval()
    back = Posterior.from_pretrained(tmp_path / "out")
    ours = load_adapter(base(qwen), back)
    with torch.no_grad():
        at_mean = model(tokens).logits
        assert torch.equal(plain(tokens).logits, at_mean)
        assert torch.equal(ours(tokens).logits, at_mean)
        with posterior.sampled(model, 1, adapter_name=adapter_name), back.sampled(ours, 1):
            drawn = ours(tokens).logits
            assert torch.equal(drawn, model(tokens).logits)
            assert not torch.equal(drawn, at_mean)
        assert torch.equal(model(tokens).logits, at_mean)


@pytest.fixture
def point(posterior) -> Posterior:
    """A plain adapter with lineage, as AdamW training and plain merges write it."""
    meta = PosteriorMeta(
        num_examples=200,
        ess=0.0,
        base_model={"id": "tiny", "fingerprint": "f" * 64},
        gauge="ab" * 32,
        steps=7,
        labels=["neg", "pos"],
        sources=[{"name": "a", "weight": 0.5}],
    )
    return Posterior(posterior.mean, {}, meta, posterior.adapter_config)


def test_a_plain_adapter_keeps_its_lineage(point, tmp_path):
    point.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out/posterior.safetensors").exists()
    back = Posterior.from_pretrained(tmp_path / "out")
    assert not back.has_hess and back.temperature is None
    for name in ("num_examples", "base_model", "gauge", "steps", "labels", "sources"):
        assert getattr(back.meta, name) == getattr(point.meta, name)
    assert back.summary()["kind"] == "plain PEFT adapter"
    assert all(torch.equal(back.sample(2)[k], v) for k, v in point.mean.items())


def test_a_plain_adapter_with_lineage_is_still_checked(point, posterior, tmp_path):
    point.save_pretrained(tmp_path / "out")
    (posterior_json := tmp_path / "out/posterior.json").write_text(
        json.dumps(json.loads(posterior_json.read_text()) | {"mean_sha256": "0"})
    )
    with pytest.raises(PosteriorFormatError, match="hash mismatch"):
        Posterior.from_pretrained(tmp_path / "out")
    posterior.save_pretrained(tmp_path / "lost")
    (tmp_path / "lost/posterior.safetensors").unlink()
    with pytest.raises(PosteriorFormatError, match="has lost its posterior.safetensors"):
        Posterior.from_pretrained(tmp_path / "lost")
    posterior.save_pretrained(tmp_path / "foreign")
    (tmp_path / "foreign/posterior.json").write_bytes((tmp_path / "lost/posterior.json").read_bytes())
    Posterior.from_pretrained(tmp_path / "foreign")  # the same posterior, so the same description
    point.save_pretrained(tmp_path / "point")
    (tmp_path / "foreign/posterior.json").write_bytes((tmp_path / "point/posterior.json").read_bytes())
    with pytest.raises(PosteriorFormatError, match="posterior.safetensors was changed after saving"):
        Posterior.from_pretrained(tmp_path / "foreign")


def test_settings_per_tensor_reach_the_draws(posterior):
    """One key at a quarter of the precision has draws twice as wide, and no other key changes."""
    keys = list(posterior.hess)
    ess = dict.fromkeys(keys, 10000.0) | {keys[1]: 2.5e3}
    weight_decay = dict.fromkeys(keys, 1e-2)
    keyed = replace(posterior, meta=replace(posterior.meta, ess=ess, weight_decay=weight_decay))
    for key in keys:
        step = posterior.sample(3)[key] - posterior.mean[key]
        factor = 2 if key == keys[1] else 1
        assert torch.allclose(keyed.sample(3)[key] - keyed.mean[key], factor * step, atol=1e-7)
    assert keyed.site().precision.keys() == posterior.site().precision.keys()
    assert keyed.summary()["temperature"] is None
    assert torch.allclose(keyed.at_temperature(1).std()[keys[1]], posterior.at_temperature(1).std()[keys[1]])


def test_a_hub_id_is_read_from_its_snapshot(posterior, tmp_path, monkeypatch):
    posterior.save_pretrained(tmp_path / "snapshot")
    asked = []

    def snapshot(repo_id, revision=None, allow_patterns=None):
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    back = Posterior.from_pretrained("someone/adapter", revision="v2")
    assert torch.equal(back.sample(1)[next(iter(back.mean))], posterior.sample(1)[next(iter(back.mean))])
    assert asked == [("someone/adapter", "v2", ["*.json", "*.safetensors", "README.md"])]


def test_home_is_expanded(posterior, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    posterior.save_pretrained("~/out")
    assert Posterior.from_pretrained("~/out").has_hess
    assert (tmp_path / "out/posterior.json").is_file()


def test_a_full_temporary_folder_is_one_line(peft_model, monkeypatch):
    from vlora.posterior.export import saved_by_peft

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft_model, "save_pretrained", full)
    with pytest.raises(OutputError, match="temporary folder .*No space left on device; free some space or"):
        saved_by_peft(peft_model)


def test_the_mean_can_be_put_into_a_model_that_carries_another_adapter(posterior, peft_model, tokens):
    with torch.no_grad():
        wanted = peft_model(tokens).logits
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.mul_(3)
        assert not torch.equal(peft_model(tokens).logits, wanted)
        posterior.load_into(peft_model)
        assert torch.equal(peft_model(tokens).logits, wanted)
    with pytest.raises(PosteriorFormatError, match="is the adapter loaded under the name 'other'"):
        posterior.load_into(peft_model, adapter_name="other")


@pytest.fixture
def trained(qwen, tokens):
    """A PEFT model and its optimizer after one step."""
    model = get_peft_model(base(qwen), LoraConfig(r=2, target_modules=["q_proj"]))
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=1e4)
    optimizer.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("number", [None, "64", 0, -3, 2.5, float("nan"), True])
def test_the_number_of_examples_is_a_number_of_rows(trained, number):
    with pytest.raises(
        TrainingError, match=r"a whole number >= 1, got .*: the rows .* for a stream, max_steps x"
    ):
        Posterior.from_optimizer(*trained, num_examples=number)


def test_any_kind_of_whole_number_is_saved_and_read(trained, tmp_path):
    rows: Any = np.int64(7)
    Posterior.from_optimizer(*trained, num_examples=rows).save_pretrained(tmp_path / "out")
    assert Posterior.from_pretrained(tmp_path / "out").meta.num_examples == 7


def test_a_model_without_that_adapter_is_refused(trained, qwen):
    model, optimizer = trained
    with pytest.raises(
        TrainingError, match="PEFT model with the adapter 'default', got Qwen2ForCausalLM with no ada"
    ):
        Posterior.from_optimizer(base(qwen), optimizer, num_examples=4)
    with pytest.raises(TrainingError, match="the adapter 'other', got PeftModel with adapters default"):
        Posterior.from_optimizer(model, optimizer, num_examples=4, adapter_name="other")
