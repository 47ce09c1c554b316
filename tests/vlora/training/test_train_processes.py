"""``accelerate launch -m vlora train``: two real processes, one result."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_ranks import decided, train_file
from two_ranks import TwoRanks, free_port

from vlora import Posterior
from vlora.config import load_config, save_config
from vlora.errors import ConfigError, OutputExistsError
from vlora.training import TrainConfig
from vlora.training.arguments import training_arguments
from vlora.training.processes import refuse_unsupported
from vlora.training.train import run_training
from vlora.training.work import last_checkpoint, work_folder

SETTINGS = {
    "optimizer": {"hess_approx": "price"},
    "peft": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
}


def launch(config, tmp_path, *overrides, processes=2, options=()):
    """Run the command of the README and return the finished process."""
    save_config(config, tmp_path / "launch.yaml")
    command = [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(processes),
        ),
        *("--main_process_port", str(free_port()), *options),
        *("-m", "vlora", "train", str(tmp_path / "launch.yaml"), *overrides),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def tensors(folder, name="adapter_model.safetensors"):
    return load_file(Path(folder) / name)


@pytest.mark.slow
def test_two_processes_write_one_result_close_to_that_of_one(make_config, tmp_path):
    short = {
        "max_steps": 6,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
    }  # all 24 rows
    done = launch(
        make_config(training=short, output=str(tmp_path / "two"), **SETTINGS), tmp_path, "curvature=true"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {tmp_path / 'two'}\n"
    assert done.stderr.count("6 steps in") == 1
    assert not (tmp_path / "two.work").exists()
    posterior = Posterior.from_pretrained(tmp_path / "two")
    assert posterior.curvature
    whole = {"max_steps": 6, "per_device_train_batch_size": 24}
    one = run_training(make_config(training=whole, output=str(tmp_path / "one"), **SETTINGS))
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        for key, tensor in tensors(one, name).items():
            torch.testing.assert_close(tensors(tmp_path / "two", name)[key], tensor, rtol=1e-3, atol=1e-5)


def test_the_first_process_decides(two_ranks):
    assert two_ranks(decided, fails=False) == [({"lr": 0.1}, 1), ({"lr": 0.1}, 0)]
    assert two_ranks(decided, fails=True) == [("no such thing", 0)] * 2


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "does not run under DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "use vlora.IVON with FSDP2"),
        ({"WORLD_SIZE": "2"}, "2 processes were launched but each would train alone"),
    ],
)
def test_other_launches_are_refused(make_config, monkeypatch, variables, words):
    args = training_arguments(make_config(), Path("work"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(args)


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_bits(two_ranks, make_config, tmp_path):
    training = {"max_steps": 30, "save_steps": 5, "per_device_train_batch_size": 4}
    for name in ("whole", "killed"):
        save_config(make_config(training=training, output=str(tmp_path / name)), tmp_path / f"{name}.yaml")
    assert two_ranks(train_file, tmp_path / "whole.yaml") == [str(tmp_path / "whole")] * 2
    victims = TwoRanks()
    victims.start()
    for pipe in victims.pipes:
        pipe.send((train_file, (tmp_path / "killed.yaml",), {"pause": 0.1}))
    work, deadline = work_folder(tmp_path / "killed"), time.monotonic() + 100
    while last_checkpoint(work) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(5).uniform(0, 1.5))  # up to step 20
    victims.stop()
    assert not (tmp_path / "killed").exists()
    with pytest.raises(OutputExistsError, match="with another number of processes; go back to it to resume"):
        run_training(load_config(TrainConfig, tmp_path / "killed.yaml"))
    assert two_ranks(train_file, tmp_path / "killed.yaml") == [str(tmp_path / "killed")] * 2
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        for key, tensor in tensors(tmp_path / "whole", name).items():
            assert torch.equal(tensors(tmp_path / "killed", name)[key], tensor)
