"""``vlora prune``: folders in and out, the table, and what later stages make of the result."""

import json

import pytest
import torch

from vlora import Posterior
from vlora.merge.run import merge_adapters
from vlora.posterior import PosteriorMeta
from vlora.recipes.cli import main
from vlora.recipes.closed_world import model_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A posterior of rank 4 on the closed-world model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("prune")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_folder()),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder / "plain")
    plain = Posterior.from_pretrained(folder / "plain")
    hess = {key: torch.rand(value.shape) + 0.1 for key, value in plain.mean.items()}
    meta = PosteriorMeta(num_examples=50, ess=500.0, weight_decay=1e-3, base_model=plain.meta.base_model)
    Posterior(plain.mean, hess, meta, plain.adapter_config).save_pretrained(folder / "a")
    return folder / "a"


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_ranks_are_dropped_and_reported(adapter, tmp_path, capsys):
    assert run("prune", adapter, "--out", tmp_path / "p", "--keep-rank", 1) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "p/prune_report.json").read_text())
    read = Posterior.from_pretrained(tmp_path / "p")
    modules = len(read.mean) // 2
    assert f"removed {3 * modules} of {4 * modules} components" in text
    assert len(text.splitlines()) == modules + 3
    assert report["keep_rank"] == 1 and report["removed"] == 3 * modules
    assert report["predicted_loss_increase"] == pytest.approx(
        sum(row["predicted_loss_increase"] for row in report["modules"])
    )
    assert read.adapter_config["r"] == 1
    assert read.meta.sources[0]["path"] == str(adapter)


def test_entries_are_zeroed(adapter, tmp_path, capsys):
    assert run("prune", adapter, "--out", tmp_path / "p", "--entries", "--fraction", 0.25) == 0
    before, after = Posterior.from_pretrained(adapter), Posterior.from_pretrained(tmp_path / "p")
    for key, value in after.mean.items():
        assert (value == 0).sum() == value.numel() // 4
        assert value.shape == before.mean[key].shape
    assert "entries; predicted loss increase" in capsys.readouterr().out


def test_pruned_posteriors_merge_evaluate_and_prune_again(adapter, tmp_path):
    assert run("prune", adapter, "--out", tmp_path / "p", "--fraction", 0.5) == 0
    first, second = Posterior.from_pretrained(adapter), Posterior.from_pretrained(tmp_path / "p")
    merged = merge_adapters([first, second], method="linear", rank="lossless")
    merged.save_pretrained(tmp_path / "m")
    assert Posterior.from_pretrained(tmp_path / "m").has_hess
    assert run("prune", tmp_path / "m", "--out", tmp_path / "mp", "--keep-rank", 4) == 0
    rows = [{"prompt": "Q", "choices": ["a", "b"], "answer": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": [str(tmp_path / "p"), str(tmp_path / "mp")],
        "base_model": str(model_folder()),
        "task": "multiple_choice",
        "data": {"test": str(tmp_path / "rows.jsonl"), "prompt": "prompt"},
        "num_samples": 2,
        "num_bootstrap": 10,
        "output": str(tmp_path / "e"),
    }
    (tmp_path / "eval.yaml").write_text(json.dumps(config))
    assert run("eval", tmp_path / "eval.yaml") == 0


def test_nothing_to_remove_writes_the_same_posterior(adapter, tmp_path, capsys):
    assert run("prune", adapter, "--out", tmp_path / "p", "--snr", 0) == 0
    assert "removed 0 of" in capsys.readouterr().out
    for name in (
        "adapter_model.safetensors",
        "adapter_config.json",
        "posterior.safetensors",
        "posterior.json",
    ):
        assert (tmp_path / "p" / name).read_bytes() == (adapter / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--snr", 1, "--keep-rank", 2], "exactly one of keep_rank, fraction, snr"),
        (["--entries", "--keep-rank", 2], "keep_rank counts rank components"),
        (["--fraction", 0.5, "--scope", "tensor"], "scope of ranks must be module or adapter, got 'tensor'"),
        (["--fraction", 0.5, "--gauge", "best"], "gauge must be one of balanced, stored, got 'best'"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(adapter, tmp_path, capsys, arguments, message):
    assert run("prune", adapter, "--out", tmp_path / "p", *arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("vlora: error: ")
    assert not (tmp_path / "p").exists()


def test_a_former_adapter_is_replaced_only_when_told(adapter, tmp_path, capsys):
    arguments = ("prune", adapter, "--out", tmp_path / "p", "--keep-rank")
    assert run(*arguments, 2) == 0
    assert run(*arguments, 1) == 1
    assert "already holds a result; pass --overwrite or move it" in capsys.readouterr().err
    assert run(*arguments, 1, "--overwrite") == 0
    assert Posterior.from_pretrained(tmp_path / "p").adapter_config["r"] == 1
