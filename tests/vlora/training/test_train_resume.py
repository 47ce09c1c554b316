import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlora.config import save_config
from vlora.errors import OutputExistsError
from vlora.training import callbacks, work
from vlora.training.train import run_training

LONG = {
    "max_steps": 12,
    "save_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
}


def interrupted(config, monkeypatch, at):
    """Run until Ctrl-C after step ``at``."""

    def press(self, args, state, control, **kwargs):
        if state.global_step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ProgressBar, "on_step_end", press)
        with pytest.raises(KeyboardInterrupt):
            run_training(config)


def same_tensors(first, second, names):
    for name in names:
        left, right = load_file(first / name), load_file(second / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture
def long_config(make_config, tmp_path):
    def make(name, output, **keys):
        base = make_config("causal_lm").data
        data = {**vars(base), "validation": base.train}
        return make_config(
            "causal_lm",
            data=data,
            training=LONG,
            optimizer={"name": name},
            output=str(tmp_path / output),
            **keys,
        )

    return make


@pytest.mark.parametrize("name", ["ivon", "adamw"])
def test_an_interrupted_run_goes_on_to_the_same_bits(name, long_config, monkeypatch, caplog):
    whole = run_training(long_config(name, "whole"))
    config = long_config(name, "broken")
    interrupted(config, monkeypatch, at=10)
    output = Path(config.output)
    assert not output.exists()
    assert work.last_checkpoint(work.work_folder(output)).name == "checkpoint-8"
    with caplog.at_level(logging.INFO):
        resumed = run_training(config)
    assert "resuming from" in caplog.text
    assert json.loads((resumed / "train_log.json").read_text())["resumed_from_step"] == 8
    files = ["adapter_model.safetensors"] + (["posterior.safetensors"] if name == "ivon" else [])
    same_tensors(whole, resumed, files)
    assert not work.work_folder(output).exists()


def test_an_interruption_leaves_the_former_result_alone(long_config, monkeypatch):
    former = run_training(long_config("ivon", "out"))
    before = {path.name: path.read_bytes() for path in former.iterdir()}
    interrupted(long_config("ivon", "out", seed=1, overwrite=True), monkeypatch, at=5)
    assert {path.name: path.read_bytes() for path in former.iterdir()} == before


def test_a_checkpoint_cut_short_is_passed_over(long_config, monkeypatch):
    config = long_config("ivon", "out")
    interrupted(config, monkeypatch, at=10)
    folder = work.work_folder(Path(config.output))
    half = folder / "checkpoint-10"
    half.mkdir()
    (half / "trainer_state.json").write_text('{"global_')
    assert work.last_checkpoint(folder).name == "checkpoint-8"
    run_training(config)


def test_checkpoints_of_another_run_are_neither_used_nor_dropped(long_config, monkeypatch, write_rows):
    config = long_config("ivon", "out")
    interrupted(config, monkeypatch, at=5)
    with pytest.raises(
        OutputExistsError, match="checkpoints of a run with another configuration; go back to it"
    ):
        run_training(long_config("ivon", "out", seed=3))
    rows = Path(config.data.train)
    content = rows.read_text()
    rows.write_text(content.replace("blue", "red"))
    with pytest.raises(OutputExistsError, match="checkpoints of a run with another data"):
        run_training(config)
    rows.write_text(content)
    fresh = run_training(long_config("ivon", "out", resume="never"))
    assert json.loads((fresh / "train_log.json").read_text())["resumed_from_step"] is None


def test_a_finished_run_is_not_repeated(make_config, caplog):
    config = make_config()
    with caplog.at_level(logging.INFO):
        folder = run_training(config)
    (told,) = [line for line in caplog.messages if line.startswith("ivon: ")]  # the settings, once
    assert "h by gradsq of " in told and told.endswith("std 0.001 now")
    stamp = (folder / "train_log.json").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert run_training(config) == folder
    assert "already holds the result of this configuration" in caplog.text
    assert (folder / "train_log.json").stat().st_mtime_ns == stamp
    with pytest.raises(OutputExistsError, match="already holds a result"):
        run_training(make_config(seed=5))
    run_training(make_config(seed=5, overwrite=True))


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_bits(make_config, tmp_path):
    training = {"max_steps": 60, "save_steps": 10, "per_device_train_batch_size": 8}
    whole = run_training(make_config(training=training, output=str(tmp_path / "whole")))
    config = make_config(training=training, output=str(tmp_path / "killed"))
    save_config(config, tmp_path / "config.yaml")
    program = (
        "import sys, time; from vlora.config import load_config; from vlora.training import TrainConfig, callbacks;"
        "from vlora.training.train import run_training;"
        "callbacks.ProgressBar.on_step_end = lambda *a, **k: time.sleep(0.05);"
        "run_training(load_config(TrainConfig, sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "config.yaml")], env=dict(os.environ)
    )
    folder = work.work_folder(tmp_path / "killed")
    deadline = time.monotonic() + 100
    while work.last_checkpoint(folder) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(
        random.Random(6).uniform(0, 1.5)
    )  # anywhere up to step 40: between checkpoints, or writing one
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    same_tensors(whole, run_training(config), ["adapter_model.safetensors", "posterior.safetensors"])
