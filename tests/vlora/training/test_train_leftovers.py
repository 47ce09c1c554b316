"""What a run leaves behind: trackers' logs, nothing after a refusal, the last checkpoint after a failure."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

import vlora.files
from vlora import Posterior
from vlora.errors import ConfigError, OutputError, OutputExistsError, TrainingError
from vlora.training import callbacks, work
from vlora.training import train as train_module
from vlora.training.train import run_training

SIX = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 8}


def log_of(folder: Path) -> dict:
    return json.loads((folder / "train_log.json").read_text())


def same_posterior(first: Path, second: Path) -> bool:
    ours, theirs = Posterior.from_pretrained(first), Posterior.from_pretrained(second)
    return (
        ours.meta.mean_sha256 == theirs.meta.mean_sha256 and ours.meta.hess_sha256 == theirs.meta.hess_sha256
    )


@pytest.mark.parametrize("strategy", [{"save_steps": 2}, {"save_strategy": "epoch"}, {"save_steps": 1}])
def test_a_run_killed_after_its_last_step_resumes_to_exactly_its_steps(
    make_config, tmp_path, monkeypatch, strategy
):
    """Trainer would go on from a checkpoint of the last step with one step more; so there is none."""
    training = {**SIX, **strategy}
    whole = run_training(make_config(training=training, output=str(tmp_path / "whole")))
    config = make_config(training=training)

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_posterior", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(config)
    last = work.last_checkpoint(work.work_folder(Path(config.output)))
    assert last is not None and int(last.name.split("-")[1]) < 6
    resumed = run_training(config)
    assert log_of(resumed)["steps"] == 6
    assert Posterior.from_pretrained(resumed).meta.steps == 6
    assert same_posterior(whole, resumed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_fails_at_the_end_costs_nothing_but_the_last_steps(
    make_config, tmp_path, monkeypatch, code
):
    whole = run_training(make_config(training=SIX, output=str(tmp_path / "whole")))
    former = run_training(make_config(seed=4))
    before = {path.name: path.read_bytes() for path in former.iterdir()}
    config = make_config(training=SIX, overwrite=True)

    def refuse(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(vlora.files, "move_into_place", refuse)
        with pytest.raises(OutputError, match=rf"cannot write .*{os.strerror(code)}.*nothing was changed"):
            run_training(config)
    assert {path.name: path.read_bytes() for path in former.iterdir()} == before
    resumed = run_training(config)
    assert log_of(resumed)["resumed_from_step"] == 4
    assert same_posterior(whole, resumed)


def test_a_refused_or_interrupted_run_without_checkpoint_leaves_nothing(make_config, tmp_path, monkeypatch):
    def diverge(*_args: object, **_kwargs: object) -> None:
        raise TrainingError("diverged")

    monkeypatch.setattr(callbacks.FiniteLoss, "on_log", diverge)
    with pytest.raises(TrainingError, match="diverged"):
        run_training(make_config(training={"max_steps": 6, "save_strategy": "no"}))
    assert [path.name for path in tmp_path.iterdir()] == ["causal_lm.jsonl"]  # the data


def test_a_base_model_that_changed_is_another_run(make_config, tiny_llama, tmp_path, monkeypatch):
    import shutil

    from safetensors.torch import save_file

    base = shutil.copytree(tiny_llama, tmp_path / "base")
    config = make_config(base_model=str(base), training=SIX)

    def press(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ProgressBar, "on_step_end", press)
        with pytest.raises(KeyboardInterrupt):
            run_training(config)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        OutputExistsError, match="checkpoints of a run with another base model; go back to it"
    ):
        run_training(config)
    assert (tmp_path / "out.work" / "checkpoint-2").is_dir()


def test_a_tracker_that_is_not_installed_is_named(make_config, tmp_path):
    config = make_config(training={**SIX, "report_to": "wandb"})
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(ConfigError, match="training: WandbCallback requires wandb to be installed"):
            run_training(config)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_logs_of_tensorboard_stay_beside_the_posterior(make_config):
    pytest.importorskip("tensorboard")
    folder = run_training(make_config(training={**SIX, "report_to": "tensorboard"}))
    assert list((folder / "runs").rglob("events.out.tfevents.*"))
    assert Posterior.from_pretrained(folder).has_hess


def test_the_working_directory_is_no_output(make_config, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="is the folder you are in"):
        run_training(make_config(output="."))
    assert not list((tmp_path / "here").iterdir())
