"""Resident memory while a checkpoint of many times that size is merged; what the lineage says of the inputs."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoint_cases import merge, odd_tensors, raw_model
from safetensors.torch import save_file

from vlora.merge.checkpoints.layout import lay_out
from vlora.posterior.hashing import fingerprint_weights

PROGRAM = """
import sys
from pathlib import Path
from vlora.merge.checkpoints import ModelMergeConfig, ModelSource, make_plan
from vlora.merge.checkpoints.run import carry_out

def status(key):
    text = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(key))

method, base, *models, output = sys.argv[1:]
config = ModelMergeConfig(method=method, base_model=base, models=tuple(ModelSource(path=p) for p in models),
                          output=output, threads=2)
plan = make_plan(config)
before = status("VmRSS")
carry_out(plan)
print(status("VmHWM") - before, plan.estimate.memory_bytes, plan.bytes_read)
"""


def hollow(folder, tensors):
    """A model folder of zeros that take no space on a disk that has holes."""
    folder.mkdir()
    (shard,) = lay_out(tensors, 10**12, {})
    with (folder / "model.safetensors").open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.nbytes)
    (folder / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
def test_memory_stays_within_the_plan(tmp_path):
    tensors = [
        ("a.weight", "BF16", (16000, 4096)),
        ("b.weight", "BF16", (4096, 11008)),
        ("c.weight", "BF16", (7,)),
    ]
    folders = [str(hollow(tmp_path / name, tensors)) for name in ("base", "x", "y")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "ties", *folders, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    used, planned, read = map(int, done.stdout.split())
    assert read > 1.2e9
    assert used < 256 * 2**20
    assert used < 1.25 * planned


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("method", ["tsv", "iso_c", "gradient_matching", "regmean"])
def test_memory_of_whole_matrices_stays_within_the_plan(tmp_path, method):
    generator, folders = torch.Generator().manual_seed(0), []
    base = {f"{name}.weight": torch.randn(900, 1800, generator=generator) for name in "ab"}
    for name in ("base", "x", "y"):
        tensors = {
            k: v + (name != "base") * torch.randn(v.shape, generator=generator) for k, v in base.items()
        }
        folders.append(str(raw_model(tmp_path / name, tensors)))
        rows = torch.randn(300, 1800, generator=generator)
        grams = {f"{m}.{kind}_gram": rows.mT @ rows for m in "ab" for kind in ("input", "activation")}
        save_file(grams, tmp_path / name / "curvature.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, method, *folders, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": "1048576",
        },  # freed matrices go back at once, in every run alike
    )
    used, planned, _ = map(int, done.stdout.split())
    assert 0.5 * planned < used < 1.1 * planned + 16 * 2**20


def lineage(out):
    return {source["name"]: source for source in json.loads((out / "merge.json").read_text())["inputs"]}


def test_lineage_tells_models_of_one_layout_apart(tmp_path):
    folders = {name: raw_model(tmp_path / name, odd_tensors(i)) for i, name in enumerate("ab")}
    models = [{"path": str(folder)} for folder in folders.values()]
    out = merge(tmp_path / "out", models=models)
    found = lineage(out)
    for name, folder in folders.items():
        assert found[name]["weights_fingerprint"] == fingerprint_weights(str(folder))
        assert found[name]["weights_fingerprint"][:16] in (out / "README.md").read_text()
    assert found["a"]["weights_fingerprint"] != found["b"]["weights_fingerprint"]
    assert found["a"]["layout_sha256"] == found["b"]["layout_sha256"]
    assert set(found["a"]["layout_sha256"]) == {"model.safetensors"}
    assert found["a"]["weight"] == 1.0 and not any("file_sha256" in source for source in found.values())


def test_input_files_are_hashed_on_demand_under_any_name(tmp_path):
    folders = [raw_model(tmp_path / run / "final", odd_tensors(i)) for i, run in enumerate("xy")]
    fishers = [tmp_path / run / "final.safetensors" for run in "xy"]
    for i, path in enumerate(fishers):
        save_file({k: v.square() for k, v in odd_tensors(5 + i).items()}, path)
    models = [{"path": str(f), "fisher": str(h)} for f, h in zip(folders, fishers, strict=True)]
    found = lineage(merge(tmp_path / "out", method="fisher", models=models, hash_inputs=True))
    expected = {
        **{f"final #{i + 1}": f / "model.safetensors" for i, f in enumerate(folders)},
        **{f"Fisher of final #{i + 1}": f for i, f in enumerate(fishers)},
    }
    assert set(found) == set(expected)
    for name, path in expected.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found[name]["file_sha256"] == {path.name: digest}, name
    assert len({str(source["file_sha256"]) for source in found.values()}) == 4
