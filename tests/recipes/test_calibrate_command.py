"""``vlora calibrate``: from the file of an evaluation to a table and a calibration.json that ``vlora eval`` applies."""

import json

import pytest
import torch

from vlora import Posterior
from vlora.posterior import PosteriorMeta
from vlora.recipes.cli import main
from vlora.recipes.closed_world import model_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def config(tmp_path):
    """Settings of an evaluation of a posterior on the closed-world model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder()), lora).save_pretrained(
        tmp_path / "plain"
    )
    plain = Posterior.from_pretrained(tmp_path / "plain")
    meta = PosteriorMeta(num_examples=50, ess=100.0, weight_decay=0.0, base_model=plain.meta.base_model)
    hess = {key: torch.ones_like(value) for key, value in plain.mean.items()}
    Posterior(plain.mean, hess, meta, plain.adapter_config).save_pretrained(tmp_path / "a")
    for name, first in (("test", 0), ("val", 8)):
        rows = [{"prompt": f"Q{i}", "choices": ["a", "b"], "answer": i % 2} for i in range(first, first + 8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(tmp_path / "a"),
        "base_model": str(model_folder()),
        "task": "multiple_choice",
        "data": {
            "test": str(tmp_path / "test.jsonl"),
            "validation": str(tmp_path / "val.jsonl"),
            "prompt": "prompt",
        },
        "num_samples": 2,
        "num_bootstrap": 10,
        "output": str(tmp_path / "e"),
    }
    (tmp_path / "eval.yaml").write_text(json.dumps(settings))
    return tmp_path / "eval.yaml"


def test_one_file_calibrates_and_evaluates(config, capsys):
    assert run("calibrate", config, "calibration.ladder=[0.5,1,2]", "calibration.refine=0") == 0
    printed = capsys.readouterr().out
    content = json.loads((config.parent / "a/calibration.json").read_text())
    width = content["posterior_temperature"]
    assert "a: 4 held-out rows, 2 draws" in printed and "on test (8 rows, 8 with a right answer)" in printed
    assert (
        f"draws at std x {width['std_scale']:.4g}" in printed
        and f"nll {width['nll']['fitted']:.4f}" in printed
    )
    assert f"with logit T {content['logit_temperature']['mean']['temperature']:.3g}" in printed
    assert run("eval", config, "temperature=stored") == 0
    results = json.loads((config.parent / "e/results.json").read_text())
    assert results["settings"]["temperature"] == "stored"
    assert results["models"][0]["std_scale"] == width["std_scale"]
    assert "fitted on 8 held-out rows" in (config.parent / "e/report.html").read_text()
    capsys.readouterr()
    assert run("inspect", config.parent / "a", "--json") == 0
    assert json.loads(capsys.readouterr().out)["calibration"]["std_scale"] == width["std_scale"]


def test_a_mistake_is_one_line(config, capsys):
    assert run("calibrate", config, "num_samples=0") == 1
    assert "vlora: error: num_samples must be at least 2" in capsys.readouterr().err
