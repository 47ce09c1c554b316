"""The posterior object and its folder: draws, temperature, sites, round trip, damage, interruption."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import vlora.files
from vlora import Posterior, PosteriorMeta
from vlora.errors import OutputError, OutputExistsError, PosteriorFormatError
from vlora.posterior.draws import standard_normal
from vlora.posterior.keys import adapter_tensors


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def peft_model(base_folder) -> PeftModel:
    base = LlamaForCausalLM.from_pretrained(base_folder)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def posterior(peft_model, tmp_path) -> Posterior:
    peft_model.save_pretrained(tmp_path / "plain")
    plain = Posterior.from_pretrained(tmp_path / "plain")
    generator = torch.Generator().manual_seed(2)
    hess = {k: 0.5 + torch.rand(v.shape, generator=generator) for k, v in plain.mean.items()}
    meta = PosteriorMeta(
        num_examples=200, ess=1e4, weight_decay=1e-2, base_model=plain.meta.base_model, steps=10
    )
    return Posterior(plain.mean, hess, meta, plain.adapter_config)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 32, (3, 9), generator=torch.Generator().manual_seed(3))


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


def damage_truncate(folder: Path):
    path = folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def damage_mean(folder: Path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[0]] += 1e-3
    save_file(tensors, path)


def damage_hess_nan(folder: Path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[0]].view(-1)[0] = float("nan")
    save_file(tensors, path)
    for name in ("posterior.json", "posterior.safetensors"):
        (folder / name).unlink()


def edit_meta(**changes):
    def damage(folder: Path):
        path = folder / "posterior.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "truncated or damaged"),
        (damage_mean, "is not the mean this posterior was saved with"),
        (damage_hess_nan, "holds NaN or infinity"),
        (edit_meta(format=2), "has format 2, this vlora reads up to 1; install variational-lora"),
        (edit_meta(family="flow"), "unknown family 'flow'"),
        (edit_meta(format="x"), "not a vlora posterior description"),
        (edit_meta(weight_decay=-9.0), "a precision must be positive"),
        (edit_meta(hess_sha256="0"), "changed after saving"),
        (remove("posterior.safetensors"), "has lost its posterior.safetensors"),
        (remove("posterior.json"), "has lost its posterior.json"),
        (remove("adapter_config.json"), "not an adapter folder"),
        (remove("adapter_model.safetensors"), "has no adapter_model.safetensors"),
        (lambda f: (f / "posterior.json").write_text("{"), "not valid JSON"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(posterior, tmp_path, damage, message):
    posterior.save_pretrained(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(PosteriorFormatError, match=message) as caught:
        Posterior.from_pretrained(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_pickled_adapters_are_not_opened(posterior, tmp_path):
    posterior.save_pretrained(tmp_path / "out")
    (tmp_path / "out/adapter_model.safetensors").rename(tmp_path / "out/adapter_model.bin")
    with pytest.raises(PosteriorFormatError, match="pickled weights"):
        Posterior.from_pretrained(tmp_path / "out")


def test_missing_folder_and_hub_id(tmp_path):
    with pytest.raises(PosteriorFormatError, match="no folder"):
        Posterior.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(PosteriorFormatError, match="the hub has nothing to give"):
        Posterior.from_pretrained("someone/some-adapter")


def test_nan_is_not_saved(posterior, tmp_path):
    key = next(iter(posterior.mean))
    broken = replace(posterior, mean={**posterior.mean, key: posterior.mean[key] * float("nan")})
    with pytest.raises(PosteriorFormatError, match="the run diverged"):
        broken.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_output_folder_is_refused(posterior, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("x")
    with pytest.raises(OutputExistsError, match=r"holds something else \(chapter1.tex\)"):
        posterior.save_pretrained(tmp_path / "thesis")
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]
    posterior.save_pretrained(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="already holds a result"):
        posterior.save_pretrained(tmp_path / "out", overwrite=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_full_disk_leaves_the_old_folder(posterior, tmp_path, monkeypatch):
    posterior.save_pretrained(tmp_path / "out")
    before = snapshot(tmp_path / "out")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vlora.files, "_fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        posterior.at_temperature(1).save_pretrained(tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain"]


def test_killed_save_leaves_the_old_folder(posterior, tmp_path):
    """SIGKILL in the middle of writing: no cleanup code runs at all."""
    posterior.save_pretrained(tmp_path / "out")
    before = snapshot(tmp_path / "out")
    program = f"""
        import os, signal
        import vlora.posterior.folder as folder
        from vlora import Posterior
        original = folder._write_tensors
        def write_then_die(path, tensors):
            original(path, tensors)
            if path.name == "posterior.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
        folder._write_tensors = write_then_die
        out = {str(tmp_path / "out")!r}
        Posterior.from_pretrained(out).at_temperature(1).save_pretrained(out)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True)
    assert done.returncode == -9
    assert snapshot(tmp_path / "out") == before
    Posterior.from_pretrained(tmp_path / "out")


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
