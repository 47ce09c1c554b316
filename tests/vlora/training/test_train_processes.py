"""``accelerate launch -m vlora train``: two real processes, one result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import free_port

from vlora import Posterior
from vlora.config import save_config
from vlora.training.train import run_training

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
