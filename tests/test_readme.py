"""The demo, and every command and snippet of the README, run as a reader would run them (with few steps)."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.recipes.cli import main
from vlora.recipes.closed_world import model_folder
from vlora.recipes.demo import run_demo

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Path:
    """Folder of a reader who has just made the demo."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_demo(Path("demo-out"), steps=6, num_samples=2)
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shape(line: str) -> str:
    """A line of output without its numbers and widths: six steps give other numbers than the reader's run."""
    return " ".join(re.sub(r"\d[\d.e+-]*", "#", line).split())


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 150
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_commands_do_what_the_readme_says():
    commands = [line.split("#")[0].split() for line in blocks("bash")[0].splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    for _, target in commands:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
        assert {"demo": "vlora demo --out demo-out", "test": "pytest"}[target] in done.stdout


def test_the_snippet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 18
    ids = torch.randint(5, 300, (24, 8), generator=torch.Generator().manual_seed(0))
    train_set = [{"input_ids": row, "labels": row} for row in ids]
    names = {"base": str(model_folder()), "train_set": train_set, "batch": {"input_ids": ids[:2]}}
    exec(snippet.replace("max_steps=200", "max_steps=5").replace("num_steps=200", "num_steps=5"), names)
    assert names["logits"].shape[:2] == (2, 8)
    assert Posterior.from_pretrained(tmp_path / "out/posterior").meta.steps == 5


def test_the_console_commands(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    for block in blocks("console"):
        command = ""
        for line in block.splitlines():
            if line.startswith("$ "):
                command = line[2:]
                with pytest.raises(SystemExit) as stop:
                    main(shlex.split(command)[1:])
                assert stop.value.code == 0, command
                printed = capsys.readouterr().out
            else:
                assert shape(line) in [shape(row) for row in printed.splitlines()], command
    assert (reader / "out/eval/report.html").stat().st_size > 50_000
    assert (reader / "my.yaml").read_text() == (ROOT / "recipes/configs/bert_sentiment_ivon.yaml").read_text()


def test_the_command_for_several_processes(reader):
    (command,) = [line for block in blocks("sh") for line in block.splitlines()]
    words = shlex.split(command)
    assert words[:2] == ["accelerate", "launch"]
    port = ["--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *port, *words[2:], "training.max_steps=2"],
        cwd=reader, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote out/a2\n"
    assert Posterior.from_pretrained(reader / "out/a2").meta.steps == 2


def test_the_demo_leaves_everything_it_promises(reader):
    out = reader / "demo-out"
    assert (out / "picture.png").read_bytes()[:4] == b"\x89PNG"
    results = json.loads((out / "report/results.json").read_text())
    assert [model["name"] for model in results["models"]][:3] == ["base", "a_ivon", "b_ivon"]
    groups = {row["group"] for row in results["rows"]}
    assert {
        "a_clean",
        "a_ambiguous",
        "b_clean",
        "b_ambiguous",
        "base",
        "unknown",
        "near_miss",
        "untaught",
    } <= groups
    scores = {(d["score"], d["name"]) for d in results["detection"]}
    assert ("length", "unknown people vs ambiguous facts") in scores
    assert "<script" not in (out / "report/report.html").read_text()
    assert len(list((out / "configs").glob("*.yaml"))) == 10


def test_the_demo_repeats_nothing_that_is_done(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    before = (reader / "demo-out/a_ivon/posterior.json").stat().st_mtime_ns
    run_demo(Path("demo-out"), steps=6, num_samples=2)
    assert capsys.readouterr().out.count("done already") == 10
    assert (reader / "demo-out/a_ivon/posterior.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="holds the demo of another seed"):
        run_demo(Path("demo-out"), seed=1)


def test_the_demo_leaves_other_folders_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something other than a demo"):
        run_demo(tmp_path)
