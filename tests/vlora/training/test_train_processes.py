"""``accelerate launch -m vlora train``: two real processes, one result."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from training_ranks import decided, train_file
from two_ranks import free_port

from vlora import Posterior
from vlora.config import load_config, save_config
from vlora.curvature import gathering
from vlora.errors import ConfigError, OutputExistsError
from vlora.training import TrainConfig, train
from vlora.training.arguments import training_arguments
from vlora.training.processes import refuse_unsupported
from vlora.training.train import run_training
from vlora.training.work import last_checkpoint, work_folder

SETTINGS = {
    "optimizer": {"hess_approx": "price"},
    "peft": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
}


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(config_file, *overrides):
    """The command of the README, on two processes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return [
        *launcher, "--main_process_port", str(free_port()), "-m", "vlora", "train", str(config_file), *overrides
    ]  # fmt: skip


def launch(config, tmp_path, *overrides):
    """Run it and return the finished process."""
    save_config(config, tmp_path / "launch.yaml")
    return subprocess.run(
        command(tmp_path / "launch.yaml", *overrides),
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )


def tensors(folder, name="adapter_model.safetensors"):
    return load_file(Path(folder) / name)


def distances(folder, other):
    """Relative distance of every Gram of two runs, in the Frobenius norm."""
    found, wanted = (tensors(place, "curvature.safetensors") for place in (folder, other))
    assert found.keys() == wanted.keys()
    return {key: ((found[key] - gram).norm() / gram.norm()).item() for key, gram in wanted.items()}


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


@pytest.mark.slow
def test_squared_gradients_of_two_processes_are_those_of_one(make_config, tmp_path, monkeypatch):
    """The default optimizer at one global batch, 6 steps: equal settings; mean to 1e-5, h and ess to 1e-4, relative.

    DDP averages the gradient before IVON squares it, and grad_batch_size counts the rows of all processes, so two
    processes differ from one in the order of sums alone.

    Curvature from the same steps: the signs of its draws belong to a process, so it is compared with the exact sums
    over tokens, from which two processes may not be further away than one is.
    """
    peft = {**SETTINGS["peft"]}  # without dropout, whose masks belong to a process
    given = {"peft": peft, "curvature": True, "curvature_source": "training"}
    micro = {
        "max_steps": 6,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
    }  # all 24 rows
    done = launch(make_config(training=micro, output=str(tmp_path / "two"), **given), tmp_path)
    assert done.returncode == 0, done.stderr
    whole = {"max_steps": 6, "per_device_train_batch_size": 24}
    run_training(make_config(training=whole, output=str(tmp_path / "one"), **given))
    monkeypatch.setattr(train, "gathering", partial(gathering, draws=None))
    run_training(make_config(training=whole, output=str(tmp_path / "exact"), **given))
    far = {name: distances(tmp_path / name, tmp_path / "exact") for name in ("one", "two")}
    for kind in ("input_gram", "output_gram"):
        alone, together = (
            sum(v for k, v in far[name].items() if k.endswith(kind)) for name in ("one", "two")
        )
        assert alone > 0.05 and together < 1.3 * alone  # equal signs in both: 1.4, the sums of one alone: 2
    one, two = (json.loads((tmp_path / name / "train_log.json").read_text()) for name in ("one", "two"))
    assert one["optimizer"] == two["optimizer"]
    assert (one["optimizer"]["hess_approx"], one["optimizer"]["grad_batch_size"]) == ("gradsq", 24.0)
    for name, limit in (("adapter_model.safetensors", 1e-5), ("posterior.safetensors", 1e-4)):
        for key, tensor in tensors(tmp_path / "one", name).items():
            gap = (tensors(tmp_path / "two", name)[key] - tensor).abs().max()
            assert gap <= limit * tensor.abs().max(), (name, key)
    here, there = (Posterior.from_pretrained(tmp_path / name).meta for name in ("one", "two"))
    assert there.ess == pytest.approx(here.ess, rel=1e-4)
    assert there.weight_decay == pytest.approx(here.weight_decay, rel=1e-4)


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
    """``accelerate launch``, kill -9 of launcher and workers at a random step, and the same command once more."""
    training = {"max_steps": 60, "save_steps": 5, "per_device_train_batch_size": 4}
    for name in ("whole", "killed"):
        save_config(make_config(training=training, output=str(tmp_path / name)), tmp_path / f"{name}.yaml")
    assert two_ranks(train_file, tmp_path / "whole.yaml") == [str(tmp_path / "whole")] * 2
    again = command(tmp_path / "killed.yaml")
    victims = psutil.Popen(again, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work, deadline = work_folder(tmp_path / "killed"), time.monotonic() + 200
    while last_checkpoint(work) is None and victims.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    for process in [victims, *victims.children(recursive=True)]:
        process.kill()
    assert victims.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with pytest.raises(OutputExistsError, match="with another number of processes; go back to it to resume"):
        run_training(load_config(TrainConfig, tmp_path / "killed.yaml"))
    done = subprocess.run(again, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        for key, tensor in tensors(tmp_path / "whole", name).items():
            assert torch.equal(tensors(tmp_path / "killed", name)[key], tensor)
