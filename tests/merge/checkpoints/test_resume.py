"""A run that is killed goes on bit for bit; two runs into one folder, a full disk: nothing under the final name."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoint_cases import merge, raw_model, tensors_of

from vlora.errors import CheckpointError, OutputError, OutputExistsError
from vlora.merge.checkpoints import workspace
from vlora.merge.checkpoints.workspace import Workspace, locked

PROGRAM = """
import sys, time
from checkpoint_cases import settings
from vlora.merge.checkpoints import engine, run_model_merge
made = engine.make_tensor
def slowly(*args):
    findings = made(*args)
    time.sleep(0.01)
    return findings
engine.make_tensor = slowly
print("ready", flush=True)
run_model_merge(settings(sys.argv[1], method="ties", base_model=sys.argv[2], models=[{"path": p} for p in sys.argv[3:]],
                threads=2, max_shard_size="100KB"))
"""


@pytest.fixture
def folders(tmp_path):
    made = []
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"t{i}.weight": torch.randn(40 + i, 97, generator=generator) for i in range(40)}
        made.append(str(raw_model(tmp_path / name, tensors)))
    return made


def journal(tmp_path):
    return tmp_path / ".out.merging" / "journal.jsonl"


def start(tmp_path, folders):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), *folders],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def merged(tmp_path, folders, name="out", **options):
    base, *models = folders
    paths = [{"path": path} for path in models]
    values = {"method": "ties", "base_model": base, "models": paths, "threads": 2, "max_shard_size": "100KB"}
    return merge(tmp_path / name, **{**values, **options})


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_bit_equal(tmp_path, folders, capfd):
    whole = merged(tmp_path, folders, "whole")
    dice, reached = random.Random(0), 0
    for _ in range(2):
        process = start(tmp_path, folders)
        reached = min(reached + dice.randint(4, 12), 36)
        while process.poll() is None:
            lines = journal(tmp_path).read_bytes().count(b"\n") - 1 if journal(tmp_path).exists() else 0
            if lines >= reached:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    done = journal(tmp_path).read_bytes().count(b"\n") - 1
    assert reached <= done < 40
    with journal(tmp_path).open("ab") as file:
        file.write(b'{"tensor": "t39.we')  # torn by the kill
    capfd.readouterr()
    out = merged(tmp_path, folders)
    assert f"going on: {done} of 40 tensors" in capfd.readouterr().err
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        if name != "README.md":  # its title is the name of the folder
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not journal(tmp_path).parent.exists()


def unfinished(tmp_path, folders, monkeypatch, **options):
    """Leave a run that failed in the middle."""
    from vlora.merge.checkpoints import engine

    made, count = engine.make_tensor, [0]

    def fails(*args):
        count[0] += 1
        if count[0] > 5:
            raise KeyboardInterrupt
        return made(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "make_tensor", fails)
        merged(tmp_path, folders, threads=1, **options)


def test_an_interrupt_can_be_resumed_and_another_plan_starts_anew(tmp_path, folders, monkeypatch, capfd):
    unfinished(tmp_path, folders, monkeypatch)
    unfinished(tmp_path, folders, monkeypatch)
    assert "going on: 5 of 40" in capfd.readouterr().err
    out = merged(tmp_path, folders, method="linear", base_model=None)
    assert "going on" not in capfd.readouterr().err
    a, b = (tensors_of(tmp_path / name) for name in "ab")
    for name, value in tensors_of(out).items():
        torch.testing.assert_close(value, (a[name] + b[name]) / 2)


def test_changed_inputs_and_another_start_of_the_machine_start_anew(tmp_path, folders, monkeypatch, capfd):
    unfinished(tmp_path, folders, monkeypatch)
    os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))
    unfinished(tmp_path, folders, monkeypatch)
    monkeypatch.setattr(workspace, "_boot", lambda: "another")
    merged(tmp_path, folders)
    assert "going on" not in capfd.readouterr().err


def test_a_journal_of_nonsense_is_no_journal(tmp_path):
    work = Workspace(tmp_path / "out", "s")
    work.start()
    for text in ("", "{}\n", "[1]\n", '{"signature": "s"}\nnull\n', "\xff\n"):
        journal(tmp_path).write_text(text)
        assert work.finished() == {}


def test_two_runs_into_one_folder(tmp_path, folders):
    with (
        locked(tmp_path / "out"),
        pytest.raises(OutputError, match="another merge is writing .*out; wait for it"),
    ):
        merged(tmp_path, folders)
    merged(tmp_path, folders)
    assert not (tmp_path / ".out.merging.lock").exists()


def test_a_former_merge_is_replaced_only_when_asked_and_as_a_whole(tmp_path, folders, monkeypatch):
    merged(tmp_path, folders)
    before = (tmp_path / "out" / "merge.json").read_text()
    with pytest.raises(OutputExistsError, match="already holds a result"):
        merged(tmp_path, folders)
    unfinished(tmp_path, folders, monkeypatch, overwrite=True, density=0.5)
    assert (tmp_path / "out" / "merge.json").read_text() == before
    merged(tmp_path, folders, overwrite=True, density=0.5)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["settings"]["density"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base", "out"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="holds something else"):
        merged(tmp_path, folders, "thesis", overwrite=True)


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, folders, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(OutputError, match="No space left.*free some space") as caught,
    ):
        patch.setattr(os, call, full)
        merged(tmp_path, folders)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base"]


def test_nan_is_named_and_inputs_are_untouched(tmp_path, folders):
    tensors = tensors_of(tmp_path / "b")
    tensors["t7.weight"][3, 5] = float("nan")
    bad = raw_model(tmp_path / "bad", tensors)
    before = (bad / "model.safetensors").read_bytes()
    for method in ("linear", "ties", "dare_linear", "slerp"):
        with pytest.raises(
            CheckpointError, match=r"bad/model\.safetensors holds NaN or infinity in t7\.weight"
        ):
            merged(tmp_path, [folders[0], folders[1], str(bad)], method=method)
    assert (bad / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "bad", "base"]


def test_what_float16_cannot_hold_is_said(tmp_path, folders):
    with pytest.raises(
        CheckpointError, match=r"exceed 65504, which float16 cannot hold; set dtype: bfloat16"
    ):
        merged(tmp_path, folders, method="task_arithmetic", scale=1e6, dtype="float16")
    with pytest.raises(CheckpointError, match="the merge of finite inputs overflows; lower scale"):
        merged(tmp_path, folders, method="task_arithmetic", scale=1e38)


def test_findings_outlive_a_kill(tmp_path):
    work = Workspace(tmp_path / "out", "s")
    work.start()
    work.begin()
    work.note("a", {"zero_fisher": [1]})
    work.note("b", {})
    assert Workspace(tmp_path / "out", "s").finished() == {"a": {"zero_fisher": [1]}, "b": {}}
