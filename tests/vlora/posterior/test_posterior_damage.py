"""Damaged, foreign and newer posterior folders are refused in one line; a failed save changes nothing."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlora.files
from vlora import Posterior
from vlora.errors import OutputError, OutputExistsError, PosteriorFormatError


def damage_truncate(folder: Path):
    path = folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def damage_mean(folder: Path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[0]] += 1e-3
    save_file(tensors, path)


def damage_hess_nan(folder: Path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[0]].view(-1)[0] = float("nan")
    save_file(tensors, path)
    for name in ("posterior.json", "posterior.safetensors"):
        (folder / name).unlink()


def damage_curvature(folder: Path):
    save_file({"m.input_gram": torch.full((2, 2), float("nan"))}, folder / "curvature.safetensors")


def edit_meta(**changes):
    def damage(folder: Path):
        path = folder / "posterior.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "truncated or damaged"),
        (damage_mean, "is not the mean this posterior was saved with"),
        (damage_hess_nan, "holds NaN or infinity"),
        (edit_meta(format=2), "has format 2, this vlora reads up to 1; install variational-lora"),
        (edit_meta(family="flow"), "unknown family 'flow'"),
        (edit_meta(format="x"), "not a vlora posterior description"),
        (edit_meta(weight_decay=-9.0), "a precision must be positive"),
        (edit_meta(hess_sha256="0"), "changed after saving"),
        (edit_meta(format=2, versions={"vlora": "0.9"}), "install variational-lora >= 0.9"),
        (edit_meta(format=2, versions=None), "install a newer variational-lora"),
        (edit_meta(ess="much"), "posterior.json is damaged: ess: .*valid number.* got 'much'"),
        (edit_meta(num_examples=None), "damaged: num_examples: .*valid integer, got None"),
        (edit_meta(health=None), "damaged: health: .*valid dictionary"),
        (edit_meta(ess=0), "ess of .* is 0.0; expected a positive number"),
        (edit_meta(ess=float("nan")), "ess of .* is nan; expected a positive number"),
        (edit_meta(weight_decay={"other": 1.0}), "ess or weight_decay is given per key, but not for"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "names no peft_type"),
        (lambda f: (f / "calibration.json").write_text("[]"), "expected a JSON object, got list"),
        (lambda f: (f / "curvature.safetensors").write_bytes(b"cut"), "curvature.safetensors: truncated"),
        (damage_curvature, "the curvature of m.input_gram holds NaN or infinity"),
        (remove("posterior.safetensors"), "has lost its posterior.safetensors"),
        (remove("posterior.json"), "has lost its posterior.json"),
        (remove("adapter_config.json"), "not an adapter folder"),
        (remove("adapter_model.safetensors"), "has no adapter_model.safetensors"),
        (lambda f: (f / "posterior.json").write_text("{"), "not valid JSON"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(posterior, tmp_path, damage, message):
    posterior.save_pretrained(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(PosteriorFormatError, match=message) as caught:
        Posterior.from_pretrained(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_pickled_adapters_are_not_opened(posterior, tmp_path):
    posterior.save_pretrained(tmp_path / "out")
    (tmp_path / "out/adapter_model.safetensors").rename(tmp_path / "out/adapter_model.bin")
    with pytest.raises(PosteriorFormatError, match="pickled weights"):
        Posterior.from_pretrained(tmp_path / "out")


def test_missing_folder_and_hub_id(tmp_path):
    with pytest.raises(PosteriorFormatError, match="no folder"):
        Posterior.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(PosteriorFormatError, match="the hub has nothing to give"):
        Posterior.from_pretrained("someone/some-adapter")


def test_nan_is_not_saved(posterior, tmp_path):
    key = next(iter(posterior.mean))
    broken = replace(posterior, mean={**posterior.mean, key: posterior.mean[key] * float("nan")})
    with pytest.raises(PosteriorFormatError, match="the run diverged"):
        broken.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_foreign_output_folder_is_refused(posterior, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("x")
    with pytest.raises(OutputExistsError, match=r"holds something else \(chapter1.tex\)"):
        posterior.save_pretrained(tmp_path / "thesis")
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]
    posterior.save_pretrained(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="already holds a result"):
        posterior.save_pretrained(tmp_path / "out", overwrite=False)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_full_disk_leaves_the_old_folder(posterior, tmp_path, monkeypatch):
    posterior.save_pretrained(tmp_path / "out")
    before = snapshot(tmp_path / "out")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vlora.files, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        posterior.at_temperature(1).save_pretrained(tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "plain"]


def test_killed_save_leaves_the_old_folder(posterior, tmp_path):
    """SIGKILL in the middle of writing: no cleanup code runs at all."""
    posterior.save_pretrained(tmp_path / "out")
    before = snapshot(tmp_path / "out")
    program = f"""
        import os, signal
        import vlora.posterior.folder as folder
        from vlora import Posterior
        original = folder.write_tensors
        def write_then_die(path, tensors):
            original(path, tensors)
            if path.name == "posterior.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
        folder.write_tensors = write_then_die
        out = {str(tmp_path / "out")!r}
        Posterior.from_pretrained(out).at_temperature(1).save_pretrained(out)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True)
    assert done.returncode == -9
    assert snapshot(tmp_path / "out") == before
    Posterior.from_pretrained(tmp_path / "out")
