"""``vlora merge`` for merges into a model: run, dry run, plan, mergekit files; one line for what cannot be."""

import json

import pytest
import torch
import yaml
from checkpoint_cases import odd_tensors, raw_model, tensors_of

from vlora.recipes.cli import main


def outcome(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def config(tmp_path):
    folders = [raw_model(tmp_path / name, odd_tensors(i)) for i, name in enumerate("ab")]
    path = tmp_path / "merge.yaml"
    path.write_text(
        yaml.safe_dump(
            {"models": [{"path": str(f)} for f in folders], "output": str(tmp_path / "out"), "threads": 1}
        )
    )
    return path


def mean(tmp_path):
    a, b = (tensors_of(tmp_path / name) for name in "ab")
    return {name: (a[name] + b[name]) / 2 for name in a}


def test_plan_dry_run_and_run(tmp_path, config, capsys):
    assert outcome("merge", "plan", config, "dtype=bfloat16") == 0
    shown = capsys.readouterr().out
    assert "can be carried out" in shown and "7 WeightedMean) in BF16" in shown
    assert outcome("merge", config, "dtype=bfloat16", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[0] == shown.splitlines()[0]
    assert outcome("merge", "plan", config, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 7
    assert not (tmp_path / "out").exists()
    assert outcome("merge", config) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}\n"
    for name, value in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(value, mean(tmp_path)[name])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**linear** (Wortsman et al. 2022" in card and card.count("| model | 1.0 |") == 2


def test_a_plan_with_problems_is_shown_and_fails(tmp_path, config, capsys):
    tensors = odd_tensors(1)
    del tensors["odd.weight"]
    raw_model(tmp_path / "c", tensors)
    assert outcome("merge", "plan", config, f"models=[{{path: {tmp_path}/a}}, {{path: {tmp_path}/c}}]") == 1
    assert "missing    c: odd.weight" in capsys.readouterr().out
    assert outcome("merge", config, f"models=[{{path: {tmp_path}/a}}, {{path: {tmp_path}/c}}]") == 1
    assert capsys.readouterr().err == "vlora: error: 'c' lacks 1 tensors of the others, first odd.weight\n"


def test_mergekit_files_of_whole_models(tmp_path, config, capsys):
    path = tmp_path / "mergekit.yaml"
    entries = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in "ab"]
    path.write_text(yaml.safe_dump({"merge_method": "linear", "models": entries, "dtype": "float32"}))
    assert outcome("merge", path, f"output={tmp_path / 'out'}") == 0
    assert "note: mergekit: dtype is that of the output" in capsys.readouterr().err
    for name, value in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(value, mean(tmp_path)[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "x.yaml", "into=model"], "into: model needs base_model"),
        (["preview", "x.yaml", "into=model", "base_model=b"], "merges into a model; this is for adapters:"),
        (["x.yaml", "into=nothing"], "into"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("adapters: [{path: a}]\noutput: o\n")
    assert outcome("merge", *words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
