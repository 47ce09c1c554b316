"""``vlora curvature``: a file beside a model, and whole models merged with it from the command line."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vlora.recipes.cli import main
from vlora.recipes.closed_world import build_world, model_folder, write_datasets


def run(*arguments) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models near the closed-world one, with curvature from the data of their own task."""
    folder = tmp_path_factory.mktemp("models")
    data = write_datasets(build_world(0, num_people=8, num_unknown=10, num_near_miss=10), folder / "data")
    for seed, name in enumerate("ab"):
        model = AutoModelForCausalLM.from_pretrained(model_folder())
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        for path in model_folder().glob("tokenizer*"):
            (folder / name / path.name).write_bytes(path.read_bytes())
        config = {
            "model": str(folder / name),
            "task": "causal_lm",
            "data": {"train": str(data[f"train_{name}"]), "prompt": "prompt", "response": "response"},
            "max_examples": 12,
            "batch_size": 4,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert run("curvature", folder / "a.yaml", "activations=true", "passes=3") == 0
    assert run("curvature", folder / "b.yaml", "activations=true") == 0
    return folder


def test_the_file_has_every_linear_layer_whatever_the_passes(world, tmp_path, capsys):
    found = load_file(world / "a" / "curvature.safetensors")
    model = AutoModelForCausalLM.from_pretrained(world / "a")
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert {key.rpartition(".")[0] for key in found} == set(names)
    assert len(found) == 3 * len(names)
    one = tmp_path / "one" / "c.safetensors"
    assert run("curvature", world / "a.yaml", f"output={one}", "layers=q_proj", "rank=4") == 0
    assert capsys.readouterr().out == f"wrote {one}\n"
    short = load_file(one)
    assert {key.rpartition(".")[2] for key in short} == {"vectors", "values", "tail"}
    name = next(key.removesuffix(".values") for key in short if key.endswith("input_gram.values"))
    values = torch.linalg.eigvalsh(found[name])
    torch.testing.assert_close(short[f"{name}.values"], values[-4:].flip(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["gradient_matching", "regmean"])
def test_models_are_merged_with_it_and_load(world, tmp_path, method):
    config = {
        "method": method,
        "base_model": str(model_folder()),
        "models": [{"path": str(world / name)} for name in "ab"],
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    assert run("merge", tmp_path / "merge.yaml") == 0
    kinds = json.loads((tmp_path / "out" / "merge.json").read_text())["tensors"]
    rule = {"gradient_matching": "GradientMatching", "regmean": "RegMean"}[method]
    assert kinds[rule] == len(load_file(world / "a" / "curvature.safetensors")) // 3
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    first, second = (AutoModelForCausalLM.from_pretrained(world / name) for name in "ab")
    inputs = torch.arange(3, 20)[None]
    logits = [model(inputs).logits for model in (merged, first, second)]
    assert (logits[0] - logits[1]).abs().max() > 1e-4 and logits[0].isfinite().all()
    assert (logits[0] - logits[1]).norm() < 5 * (logits[1] - logits[2]).norm()


def test_what_cannot_be_is_one_line(world, tmp_path, capsys):
    cases = [
        ((world / "a.yaml",), "curvature.safetensors exists; set overwrite: true to replace it"),
        ((world / "a.yaml", "passes=0"), "passes must be at least 1, got 0"),
        ((world / "a.yaml", f"output={tmp_path}"), "is a folder; name a file in it"),
        (
            (world / "a.yaml", "model=org/model"),
            "no folder org/model here to write curvature.safetensors into",
        ),
        ((world / "a.yaml", "layers=nothing", "overwrite=true"), "'nothing' matches none of"),
        ((world / "a.yaml", "task=sequence_classification", "overwrite=true"), "without a head for classes"),
        ((world / "a.yaml", "layer=x"), "unknown key 'layer'; did you mean 'layers'"),
    ]
    before = (world / "a" / "curvature.safetensors").read_bytes()
    for arguments, message in cases:
        assert run("curvature", *arguments) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("vlora: ") == 1
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run("curvature", world / "a.yaml", f"model={tmp_path}") == 1
    assert "is an adapter; vlora posterior with curvature: true measures adapters" in capsys.readouterr().err
    assert (world / "a" / "curvature.safetensors").read_bytes() == before
