"""The command line on the closed world: the road in four commands, and one clear line for every mistake."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import vlora.files
from vlora import Posterior
from vlora.recipes.cli import main
from vlora.recipes.closed_world import build_world, model_folder, write_datasets

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Data, a training configuration, two short adapters of it and one trained with AdamW."""
    folder = tmp_path_factory.mktemp("world")
    data = write_datasets(build_world(0, num_people=8, num_unknown=10, num_near_miss=10), folder / "data")
    config = {
        "base_model": str(model_folder()),
        "task": "causal_lm",
        "data": {
            "train": str(data["train_a"]),
            "prompt": "prompt",
            "response": "response",
            "append_eos": False,
        },
        "peft": {"type": "lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        "training": {"per_device_train_batch_size": 16, "max_steps": 4, "use_cpu": True},
        "output": str(folder / "a"),
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    run("train", folder / "train.yaml")
    run("train", folder / "train.yaml", f"output={folder}/b", f"data.train={data['train_b']}", "seed=1")
    run("train", folder / "train.yaml", f"output={folder}/w", "optimizer.name=adamw", "optimizer.lr=1e-3")
    merge = {
        "method": "gradient_matching",
        "adapters": [{"path": str(folder / n)} for n in "ab"],
        "rank": "keep",
    }
    (folder / "merge.yaml").write_text(yaml.safe_dump({**merge, "output": str(folder / "m")}))
    evaluation = {
        "model": ["base", str(folder / "a")],
        "base_model": str(model_folder()),
        "task": "multiple_choice",
        "data": {
            "test": str(data["test"]),
            "validation": str(data["val"]),
            "prompt": "prompt",
            "group": "group",
        },
        "num_samples": 2,
        "num_bootstrap": 50,
        "output": str(folder / "e"),
    }
    (folder / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    return folder


def run(*arguments: object) -> int:
    """Exit code of one command, in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def failure(capsys, *arguments: object) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert run(*arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlora: ")]
    assert len(lines) == 1
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_road(world, capsys):
    assert run("merge", world / "merge.yaml") == 0
    assert run("eval", world / "eval.yaml", f"model=[base, {world}/a, {world}/m, {world}/w]") == 0
    names = {path.name for path in (world / "e").iterdir()}
    assert {"records.jsonl", "results.json", "report.html", "config.yaml"} <= names
    results = json.loads((world / "e/results.json").read_text())
    kinds = {model["name"]: model["kind"] for model in results["models"]}
    assert kinds == {
        "base": "base", "a": "posterior", "m": "posterior", "w": "adapter", "ensemble": "ensemble"
    }  # fmt: skip
    assert results["models"][-1]["members"] == ["a", "w"]  # what was trained, not what was merged
    capsys.readouterr()
    assert run("inspect", world / "m", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "posterior"
    assert len(facts["merged_from"]) == 2
    assert run("inspect", world / "w") == 0
    assert "plain PEFT adapter" in capsys.readouterr().out


def test_a_plain_adapter_gets_a_posterior_that_the_other_commands_read(world, capsys, tmp_path):
    """Trained with AdamW; what vlora added is removed, so that it is a folder as PEFT writes it."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (plain / name).write_bytes((world / "w" / name).read_bytes())
    train = yaml.safe_load((world / "train.yaml").read_text())
    config = {k: train[k] for k in ("task", "data")} | {"adapter": str(plain), "output": str(tmp_path / "l")}
    (tmp_path / "posterior.yaml").write_text(yaml.safe_dump(config))
    assert run("posterior", tmp_path / "posterior.yaml", "max_examples=24", "prior_precision=1e4") == 0
    assert f"wrote {tmp_path}/l" in capsys.readouterr().out
    changed = (f"model=[{plain}, {tmp_path}/l]", f"output={tmp_path}/e", "overwrite=true")
    assert run("eval", world / "eval.yaml", *changed) == 0
    results = json.loads((tmp_path / "e/results.json").read_text())
    assert {model["name"]: model["kind"] for model in results["models"]} == {
        "plain": "adapter",
        "l": "posterior",
    }
    rows = {
        (r["model"], r["predictor"]): r["metrics"]["nll"]["value"]
        for r in results["rows"]
        if r["group"] == "all"
    }
    # draws are scored beside the mean in one pass, so the mean agrees to rounding
    assert rows["l", "mean"] == pytest.approx(rows["plain", "mean"], rel=1e-6)
    assert abs(rows["l", "samples"] - rows["l", "mean"]) > 1e-5
    health = (tmp_path / "e/report.html").read_text().split("Health of the posteriors")[1]
    row = health.split('<th scope="row">l</th>')[1].split("</tr>")[0]
    assert "h was measured after training (Laplace)" in row
    pair = f"adapters=[{{path: {tmp_path}/l}}, {{path: {world}/a}}]"
    assert run("merge", world / "merge.yaml", pair, f"output={tmp_path}/m") == 0
    assert (
        run("posterior", tmp_path / "posterior.yaml", f"adapter={tmp_path}/m", f"output={tmp_path}/again")
        == 0
    )
    capsys.readouterr()
    assert run("inspect", tmp_path / "again") == 0
    assert "measured after training" in capsys.readouterr().out
    message = failure(capsys, "posterior", tmp_path / "posterior.yaml", "priors=1", f"output={tmp_path}/n")
    assert "unknown key 'priors'; did you mean 'prior_" in message


def test_help_is_enough_to_get_going(capsys):
    commands = (
        "train",
        "posterior",
        "curvature",
        "merge",
        "eval",
        "calibrate",
        "prune",
        "inspect",
        "demo",
        "recipes",
    )
    for command in ((), *((name,) for name in commands)):
        assert run(*command, "--help") == 0
        text = capsys.readouterr().out
        assert "Usage: vlora" in text
        if command in (("train",), ("posterior",), ("curvature",), ("merge",), ("eval",), ("calibrate",)):
            assert "Keys:" in text and "CONFIG.yaml" in text
    assert run("--version") == 0
    assert capsys.readouterr().out == "vlora 0.1.0\n"
    assert run("tarin") == 2


def test_help_imports_nothing_heavy():
    """``vlora --help`` answers in well under a second because torch is never imported."""
    program = """
import contextlib, sys
from vlora.recipes.cli import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print([m for m in ("torch", "transformers", "datasets", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_vlora():
    done = subprocess.run(
        [sys.executable, "-m", "vlora", "recipes", "ls"], capture_output=True, text=True, check=True
    )
    assert "merge_gradient_matching" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.lrr=1", "unknown key 'lrr'; did you mean 'lr'"),
        ("training.max_step=3", "unknown key 'max_step'; did you mean 'max_steps'"),
        ("peft.lora_alfa=3", "unknown key 'lora_alfa'; did you mean 'lora_alpha'"),
        ("data.prompt=question", "no column 'question'; the columns are prompt, response"),
        ("base_model=/nowhere/model", "/nowhere/model"),
        ("data.train=/nowhere/x.jsonl", "/nowhere/x.jsonl"),
    ],
)
def test_a_bad_training_configuration_is_one_line(world, capsys, tmp_path, change, message):
    out = tmp_path / "out"
    assert message in failure(capsys, "train", world / "train.yaml", f"output={out}", change)
    assert not out.exists()


def test_empty_data(world, capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    line = failure(
        capsys, "train", world / "train.yaml", f"output={tmp_path}/o", f"data.train={tmp_path}/empty.jsonl"
    )
    assert "empty.jsonl" in line and "empty" in line.replace("empty.jsonl", "")


def test_label_outside_range(world, capsys, tmp_path):
    rows = [json.loads(line) for line in (world / "data/test.jsonl").read_text().splitlines()]
    rows[3]["answer"] = 99
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = failure(
        capsys, "eval", world / "eval.yaml", f"data.test={tmp_path}/t.jsonl", f"output={tmp_path}/e"
    )
    assert "row 3: answer 99 is not one of the 24 choices" in line
    assert not (tmp_path / "e").exists()


def test_foreign_output_is_refused_and_kept(world, capsys, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/notes.txt").write_text("mine")
    for command in ("train", "merge", "eval"):
        line = failure(capsys, command, world / f"{command}.yaml", f"output={tmp_path}/o")
        assert "holds something else (notes.txt)" in line
    assert contents(tmp_path / "o") == {"notes.txt": b"mine"}


def test_posterior_of_another_mean_and_truncated_files(world, capsys, tmp_path):
    Posterior.from_pretrained(world / "a").save_pretrained(tmp_path / "edited")
    tensors = load_file(tmp_path / "edited/adapter_model.safetensors")
    save_file({k: v + 1e-3 for k, v in tensors.items()}, tmp_path / "edited/adapter_model.safetensors")
    assert "hash mismatch" in failure(capsys, "inspect", tmp_path / "edited")
    Posterior.from_pretrained(world / "a").save_pretrained(tmp_path / "cut")
    path = tmp_path / "cut/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    changed = f"adapters=[{{path: {tmp_path}/cut}}, {{path: {world}/b}}]"
    assert "truncated or damaged" in failure(
        capsys, "merge", world / "merge.yaml", changed, f"output={tmp_path}/m"
    )
    assert not (tmp_path / "m").exists()


def test_nan_weights_are_refused(world, capsys, tmp_path):
    Posterior.from_pretrained(world / "w").save_pretrained(tmp_path / "nan")
    tensors = load_file(tmp_path / "nan/adapter_model.safetensors")
    first = sorted(tensors)[0]
    tensors[first][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan/adapter_model.safetensors")
    (tmp_path / "nan/posterior.json").unlink()
    assert "NaN or infinity" in failure(
        capsys, "eval", world / "eval.yaml", f"model={tmp_path}/nan", f"output={tmp_path}/e"
    )


def test_adapter_of_another_base_model(world, capsys, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(model_folder())
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(model_folder()).save_pretrained(tmp_path / "other")
    run(
        "train",
        world / "train.yaml",
        f"base_model={tmp_path}/other",
        f"output={tmp_path}/foreign",
        "training.max_steps=1",
    )
    mixed = f"adapters=[{{path: {world}/a}}, {{path: {tmp_path}/foreign}}]"
    assert "base" in failure(capsys, "merge", world / "merge.yaml", mixed, f"output={tmp_path}/m")
    assert "base" in failure(
        capsys, "eval", world / "eval.yaml", f"model={tmp_path}/foreign", f"output={tmp_path}/e"
    )


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")]
)
def test_unwritable_output_keeps_the_old_one(world, capsys, tmp_path, monkeypatch, code, words):
    assert run("merge", world / "merge.yaml", f"output={tmp_path}/m") == 0
    before = contents(tmp_path / "m")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vlora.files, "move_into_place", refuse)
    line = failure(
        capsys, "merge", world / "merge.yaml", f"output={tmp_path}/m", "method=linear", "overwrite=true"
    )
    assert words in line and "nothing was changed" in line
    assert contents(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_ctrl_c_leaves_the_old_output_and_the_run_goes_on(world, tmp_path):
    """A real SIGINT to a real process; the same command then finishes what was begun."""
    command = [
        sys.executable, "-m", "vlora", "train", str(world / "train.yaml"), f"output={tmp_path}/o",
        "training.max_steps=400", "training.save_steps=2", "training.logging_steps=1",
    ]  # fmt: skip
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        not list((tmp_path / "o.work").glob("checkpoint-*/trainer_state.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "vlora: interrupted" in err
    assert "Traceback" not in err, err
    assert not (tmp_path / "o").exists()
    assert list((tmp_path / "o.work").glob("checkpoint-*"))
