"""Resident memory while a checkpoint of many times that size is merged; hashes of inputs on demand."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from checkpoint_cases import merge, odd_tensors, raw_model

from vlora.merge.checkpoints.layout import lay_out

PROGRAM = """
import sys
from pathlib import Path
from vlora.merge.checkpoints import ModelMergeConfig, ModelSource, make_plan
from vlora.merge.checkpoints.run import carry_out

def status(key):
    text = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(key))

base, *models, output = sys.argv[1:]
config = ModelMergeConfig(method="ties", base_model=base, models=tuple(ModelSource(path=p) for p in models),
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
        [sys.executable, "-c", PROGRAM, *folders, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    used, planned, read = map(int, done.stdout.split())
    assert read > 1.2e9
    assert used < 256 * 2**20
    assert used < 1.5 * planned + 16 * 2**20


def test_input_files_are_hashed_on_demand(tmp_path):
    folders = [raw_model(tmp_path / name, odd_tensors(i)) for i, name in enumerate("ab")]
    models = [{"path": str(folder)} for folder in folders]
    found = json.loads((merge(tmp_path / "out", models=models, hash_inputs=True) / "merge.json").read_text())
    expected = {
        f"{f.name}/model.safetensors": hashlib.sha256((f / "model.safetensors").read_bytes()).hexdigest()
        for f in folders
    }
    assert found["file_sha256"] == expected
    plain = json.loads((merge(tmp_path / "plain", models=models) / "merge.json").read_text())
    assert "file_sha256" not in plain
    assert [set(source["header_sha256"]) for source in plain["inputs"]] == [{"model.safetensors"}] * 2
    assert plain["inputs"][0]["name"] == "a" and plain["inputs"][0]["weight"] == 1.0
