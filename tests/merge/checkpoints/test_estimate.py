"""The time of a plan for whole models: every kind of tensor is made once, and nothing in a tensor stops the plan."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_cases import odd_tensors, raw_model, settings

from vlora.merge.checkpoints import estimate as estimates
from vlora.merge.checkpoints import make_plan
from vlora.merge.checkpoints.headers import TensorEntry
from vlora.merge.checkpoints.rules import WeightedMean
from vlora.merge.checkpoints.stream import TensorJob
from vlora.merge.checkpoints.verify import chosen_jobs

METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties", "della", "tsv", "iso_c")


@pytest.fixture
def folders(tmp_path):
    start = odd_tensors(0)
    parts = {"base": start, "a": odd_tensors(1, start=start), "b": odd_tensors(2, start=start)}
    return {name: str(raw_model(tmp_path / name, tensors)) for name, tensors in parts.items()}


def planned(tmp_path, folders, method, **values):
    models = [{"path": folders[name]} for name in "ab"]
    base = None if method == "linear" else folders["base"]
    return make_plan(
        settings(tmp_path / "out", models=models, method=method, base_model=base, **values), dry=True
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_is_tried_on_a_part_of_a_tensor(tmp_path, folders, method, monkeypatch):
    monkeypatch.setattr(estimates, "_SAMPLE", 4096)  # so that "big.weight" is only begun
    found = planned(tmp_path, folders, method).estimate
    assert 0 < found.seconds < 60 and "golden identities" in found.basis


def test_a_part_has_the_first_rows():
    (job,) = [j for j in _jobs() if j.name == "big.weight"]
    part = estimates._part(job)
    assert part.shape == (301, 517) and part.inputs[0].shape == (301, 517)
    wide = replace(job, shape=(10**6, 8), inputs=tuple(replace(e, shape=(10**6, 8)) for e in job.inputs))
    rows = estimates._SAMPLE // 32
    assert estimates._part(wide).shape == (rows, 8)
    assert (
        estimates._part(replace(job, inputs=(*job.inputs, replace(job.inputs[0], shape=(517, 301))))) is None
    )
    assert estimates._part(replace(job, shape=(0, 5))) is None


def _jobs():
    entry = TensorEntry("big.weight", "F32", (301, 517), Path("x"), 0)
    return [TensorJob("big.weight", "F32", (301, 517), (entry, entry), WeightedMean([0.5, 0.5]))]


def test_seconds_are_bytes_over_speed_and_the_identities(monkeypatch):
    """Two inputs of 301 x 517 in float32 at 1 MB/s, written at 1 GB/s, compared twice."""
    monkeypatch.setattr(estimates, "_speed", lambda *_: 1e6)
    jobs, size = _jobs(), 4 * 301 * 517
    assert chosen_jobs(jobs) == jobs
    monkeypatch.setattr(estimates, "_comparing", lambda _: 1e-6)
    plain = 2 * size / 1e6 + size / 1e9 + 0.5
    assert estimates.estimate(jobs, 1, 2**20).seconds == pytest.approx(plain)
    assert estimates.estimate(jobs, 1, 2**20, 2).seconds == pytest.approx(plain + 2 * 301 * 517 * 1e-6)


def test_damaged_values_are_left_to_the_merge(tmp_path, folders):
    tensors = odd_tensors(5)
    tensors["big.weight"][0, 0] = math.nan
    folders["b"] = str(raw_model(tmp_path / "nan", tensors))
    assert planned(tmp_path, folders, "ties").estimate.seconds > 0
