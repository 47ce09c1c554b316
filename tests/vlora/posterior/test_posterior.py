"""The posterior object and its folder: draws, temperature, sites, round trip, damage, interruption."""

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import LlamaForCausalLM

from vlora import Posterior
from vlora.posterior.draws import standard_normal
from vlora.posterior.hub import is_hub_id
from vlora.posterior.keys import adapter_tensors


def test_draws_are_fixed_for_all_time():
    """Golden values: a change here silently changes every published draw number."""
    draw = standard_normal(torch.Size([2, 2]), seed=0, draw=0, name="w")
    expected = [0.3205903768539429, -0.8291780948638916, 1.7242830991744995, -0.3333542048931122]
    assert draw.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_draws_have_the_posterior_moments(posterior):
    key = next(iter(posterior.hess))
    draws = torch.stack([posterior.sample(k)[key] for k in range(3000)])
    std = posterior.std()[key]
    z = (draws.mean(0) - posterior.mean[key]) / (std / 3000**0.5)
    assert z.abs().max() < 4.5
    assert torch.allclose(draws.std(0), std, rtol=0.07)
    expected = (1e4 * (posterior.hess[key] + 1e-2)).rsqrt()
    assert torch.allclose(std, expected, rtol=1e-6)


def test_draw_k_depends_on_nothing_but_its_number(posterior):
    late = posterior.sample(7)
    torch.manual_seed(123)
    posterior.sample(0)
    again = posterior.sample(7)
    assert all(torch.equal(late[k], again[k]) for k in late)
    assert any(not torch.equal(late[k], posterior.sample(8)[k]) for k in late)
    with pytest.raises(ValueError, match="start at 0, got -1"):
        posterior.sample(-1)


def test_antithetic_pairs_mirror_about_the_mean(posterior):
    even, odd = posterior.sample(4, antithetic=True), posterior.sample(5, antithetic=True)
    plain = posterior.sample(2)
    for key, mean in posterior.mean.items():
        assert torch.allclose((even[key] + odd[key]) / 2, mean, atol=1e-7)
        assert torch.equal(even[key], plain[key])


def test_keys_without_hess_are_deterministic(posterior):
    frozen = {k: h for k, h in posterior.hess.items() if "lora_B" in k}
    half = replace(posterior, hess=frozen)
    drawn = half.sample(0)
    assert all(torch.equal(drawn[k], half.mean[k]) == ("lora_A" in k) for k in drawn)


def test_temperature_scales_the_precision_and_nothing_else(posterior):
    assert posterior.temperature == pytest.approx(200 / 1e4)
    bayes = posterior.at_temperature(1.0)
    assert bayes.meta.ess == 200
    for key, sd in posterior.std().items():
        assert torch.allclose(bayes.std()[key], sd * (1e4 / 200) ** 0.5)
        assert torch.equal(bayes.hess[key], posterior.hess[key])
    assert bayes.at_temperature(2.0).temperature == pytest.approx(2.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        posterior.at_temperature(0)


def test_site_is_untempered(posterior):
    site, colder = posterior.site(), posterior.at_temperature(1e-6).site()
    for key, h in posterior.hess.items():
        assert torch.allclose(site.precision[key], 200 * h)
        assert torch.allclose(site.natural_mean[key], 200 * (h + 1e-2) * posterior.mean[key])
        assert torch.equal(site.precision[key], colder.precision[key])


def test_sites_add_and_subtract(posterior):
    site = posterior.site()
    back = (site + site.scale(0.5)) - site.scale(0.5)
    for key in site.precision:
        assert torch.allclose(back.precision[key], site.precision[key])
        assert torch.allclose(back.natural_mean[key], site.natural_mean[key], atol=1e-5)
    with pytest.raises(ValueError, match="cover different tensors"):
        _ = site + replace(posterior, hess={}).site()


def test_sampled_restores_bit_for_bit_also_after_an_error(posterior, peft_model, tokens):
    before = {n: p.detach().clone() for n, p in peft_model.named_parameters()}
    addresses = {n: p.data_ptr() for n, p in peft_model.named_parameters()}
    with torch.no_grad():
        at_mean = peft_model(tokens).logits
        with posterior.sampled(peft_model, 3):
            live = adapter_tensors(peft_model, posterior.mean)
            assert all(torch.equal(live[k], v) for k, v in posterior.sample(3).items())
            assert not torch.equal(peft_model(tokens).logits, at_mean)
            with posterior.sampled(peft_model):  # nested: the mean
                assert torch.equal(peft_model(tokens).logits, at_mean)
        with pytest.raises(RuntimeError, match="inside"), posterior.sampled(peft_model, 0):
            raise RuntimeError("inside")
    for name, parameter in peft_model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.data_ptr() == addresses[name]


def test_plain_peft_loads_the_mean_bit_equal(posterior, peft_model, base_folder, tokens, tmp_path):
    posterior.save_pretrained(tmp_path / "out")
    base = LlamaForCausalLM.from_pretrained(base_folder)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, peft_model(tokens).logits)
    ours, theirs = json.loads((tmp_path / "out/adapter_config.json").read_text()), tmp_path / "plain"
    assert ours == json.loads((theirs / "adapter_config.json").read_text())
    assert sorted(os.listdir(tmp_path / "out")) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "posterior.json", "posterior.safetensors",
    ]  # fmt: skip


def test_round_trip_is_exact(posterior, tmp_path):
    gram = {"base_model.model.model.layers.0.self_attn.q_proj.input_gram": torch.eye(16)}
    full = replace(posterior, curvature=gram, calibration={"temperature": 1.3})
    full.save_pretrained(tmp_path / "out", extra_files={"train_log.json": "{}"})
    back = Posterior.from_pretrained(tmp_path / "out")
    for name in ("mean", "hess", "curvature"):
        ours, theirs = getattr(full, name), getattr(back, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert back.calibration == {"temperature": 1.3}
    assert (back.meta.ess, back.meta.weight_decay, back.meta.num_examples) == (1e4, 1e-2, 200)
    assert json.loads((tmp_path / "out/posterior.json").read_text())["temperature"] == pytest.approx(0.02)
    assert (tmp_path / "out/train_log.json").read_text() == "{}"
    assert all(torch.equal(full.sample(5)[k], back.sample(5)[k]) for k in full.mean)


def test_per_key_settings_round_trip(posterior, tmp_path):
    ess = {k: 1e3 * (1 + i) for i, k in enumerate(posterior.hess)}
    keyed = replace(posterior, meta=replace(posterior.meta, ess=ess))
    keyed.save_pretrained(tmp_path / "out")
    back = Posterior.from_pretrained(tmp_path / "out")
    assert back.meta.ess == ess
    assert back.temperature is None
    key = list(ess)[2]
    assert torch.allclose(back.precision()[key], 3e3 * (posterior.hess[key] + 1e-2))


def test_plain_adapter_is_a_posterior_without_variance(posterior, tmp_path):
    plain = Posterior.from_pretrained(tmp_path / "plain")
    assert not plain.has_hess
    assert all(torch.equal(plain.sample(3)[k], plain.mean[k]) for k in plain.mean)
    assert plain.summary()["kind"] == "plain PEFT adapter"


def test_summary_says_when_the_posterior_is_its_prior(posterior):
    stuck = replace(posterior, meta=replace(posterior.meta, health={"share_moved": 0.02}))
    assert "still its prior" in stuck.summary()["verdict"]
    assert posterior.summary()["stochastic_parameters"] == sum(h.numel() for h in posterior.hess.values())


def test_push_uploads_the_whole_folder(posterior, monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen.update(repo=repo_id, files=sorted(os.listdir(folder_path)), message=commit_message)
            return "commit-address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert posterior.push_to_hub("me/adapter", token="t") == "commit-address"
    assert seen["repo"] == "me/adapter"
    assert {"adapter_model.safetensors", "posterior.safetensors", "posterior.json"} <= set(seen["files"])


@pytest.mark.parametrize(
    ("base", "named"), [("meta/llama", True), ("gpt2", True), ("/models/llama", False), (None, False)]
)
def test_the_card_names_a_base_model_to_the_hub_only_by_an_id(posterior, tmp_path, base, named):
    replace(posterior, meta=replace(posterior.meta, base_model={"id": base})).save_pretrained(tmp_path / "p")
    card = (tmp_path / "p/README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "peft" and "vlora" in metadata["tags"]
    assert metadata.get("base_model") == (base if named else None)
    assert base is None or f"from_pretrained({json.dumps(base)})" in card


def test_a_local_folder_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "out/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("out/other") and not is_hub_id("out/model") and not is_hub_id("./out/other")


def test_card_shows_lineage_and_survives_html(posterior, tmp_path):
    sources = [{"name": "a", "weight": 0.5, "mean_sha256": "ab" * 32}]
    merged = replace(
        posterior, meta=replace(posterior.meta, sources=sources, notes=["isotropic curvature was used"])
    )
    merged.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| a | 0.5 | `abababababab` |" in card
    assert "isotropic curvature was used" in card
    assert card.startswith("---\nlibrary_name: peft\n")
