"""Draws as PEFT adapters: each loads with plain PEFT and holds exactly that draw, at the fitted width."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2] / "eval"))
import eval_tiny
from peft import PeftModel
from transformers import AutoModelForCausalLM

from vlora.errors import ConfigError, OutputExistsError
from vlora.posterior import Posterior
from vlora.posterior.adapters import export_draws, largest_rank, serving_problems
from vlora.posterior.calibration import identity
from vlora.recipes.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draws")
    base = eval_tiny.save_base(folder / "base", eval_tiny.llama())
    _, posterior = eval_tiny.adapted(AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM", 1)
    posterior.save_pretrained(folder / "p")
    return folder, Posterior.from_pretrained(folder / "p")


def test_every_folder_is_that_draw_for_plain_peft(world, tmp_path):
    folder, posterior = world
    out = export_draws(posterior, tmp_path / "out", 4)
    index = json.loads((out / "draws.json").read_text())
    assert index["adapters"] == [f"draw-{k}" for k in range(4)] and index["std_scale"] is None
    assert sorted(path.name for path in out.iterdir()) == [
        "draw-0",
        "draw-1",
        "draw-2",
        "draw-3",
        "draws.json",
    ]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "base"), out / "draw-0", adapter_name="draw-0"
    )
    for k in range(4):
        if k:
            model.load_adapter(out / f"draw-{k}", adapter_name=f"draw-{k}")
        model.set_adapter(f"draw-{k}")
        tokens = torch.arange(4, 12)[None]
        with torch.no_grad():
            ours = model(tokens).logits
        reference = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "p"
        )
        with posterior.sampled(reference, k, antithetic=True), torch.no_grad():
            assert torch.equal(reference.eval()(tokens).logits, ours)
    weights = [load_file(out / f"draw-{k}" / "adapter_model.safetensors") for k in (0, 1)]
    for key, mean in posterior.mean.items():
        assert torch.allclose((weights[0][key] + weights[1][key]) / 2, mean, atol=1e-6)  # mirrored


def test_the_fitted_width_is_used_unless_told_otherwise(world, tmp_path):
    folder, posterior = world
    shutil.copytree(folder / "p", tmp_path / "p")
    content = {
        "format": 1, "posterior_sha256": identity(posterior), "posterior_temperature": {"std_scale": 0.5},
    }  # fmt: skip
    (tmp_path / "p/calibration.json").write_text(json.dumps(content))
    stored = Posterior.from_pretrained(tmp_path / "p")
    narrow, wide = (
        export_draws(stored, tmp_path / name, 1, antithetic=False, stored_width=name == "narrow")
        for name in ("narrow", "wide")
    )
    assert json.loads((narrow / "draws.json").read_text())["std_scale"] == 0.5
    for key, mean in posterior.mean.items():
        near, far = (load_file(out / "draw-0/adapter_model.safetensors")[key] for out in (narrow, wide))
        assert torch.allclose(near - mean, 0.5 * (far - mean), atol=1e-5)


def test_refusals_leave_things_as_they_are(world, tmp_path):
    _, posterior = world
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(OutputExistsError, match=r"holds something else \(file\) and no draws.json"):
        export_draws(posterior, tmp_path / "mine", 2)
    out = export_draws(posterior, tmp_path / "out", 2)
    with pytest.raises(OutputExistsError, match="already holds a result"):
        export_draws(posterior, out, 2)
    with pytest.raises(ConfigError, match="even for antithetic draws, got 3"):
        export_draws(posterior, tmp_path / "odd", 3)
    plain = Posterior(posterior.mean, {}, posterior.meta, posterior.adapter_config)
    with pytest.raises(ConfigError, match="has no posterior, so there is nothing to draw"):
        export_draws(plain, tmp_path / "plain", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_the_command_prints_how_to_serve_them(world, tmp_path, capsys):
    folder, _ = world
    with pytest.raises(SystemExit):
        app(
            args=["export", str(folder / "p"), "--out", str(tmp_path / "o"), "--num-samples", "2"],
            prog_name="vlora",
        )
    printed = capsys.readouterr().out
    assert f"wrote 2 adapters to {tmp_path / 'o'}" in printed
    assert (
        f"--enable-lora --max-loras 2 --max-lora-rank 8 --lora-modules draw-0={tmp_path / 'o'}/draw-0"
        in printed
    )


def test_what_a_server_may_not_take_is_named():
    config = {"peft_type": "LORA", "r": 8, "bias": "none"}
    assert serving_problems(config) == [] and largest_rank(config) == 8
    odd = {
        **config,
        "use_dora": True,
        "bias": "all",
        "modules_to_save": ["lm_head"],
        "rank_pattern": {"q": 32},
    }
    assert len(serving_problems(odd)) == 4 and largest_rank(odd) == 32
    assert serving_problems({"peft_type": "VERA"}) == ["peft_type is VERA, not LORA"]
    assert largest_rank({"peft_type": "VERA", "r": 4}) is None
