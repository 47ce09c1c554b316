"""Adapters are opened with their Grams left in the file, and the lineage says which commit of a hub id was merged."""

import json
import os
import weakref

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter
from safetensors.torch import load_file, save_file

from vlora.config import load_config
from vlora.errors import PosteriorFormatError
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.opening import open_adapter
from vlora.posterior import Posterior
from vlora.posterior.hub import commit_of
from vlora.posterior.stored import StoredTensors

COMMITS = ("0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98")


@pytest.fixture
def folders(tmp_path):
    made = []
    for seed, commit in enumerate(COMMITS, 1):
        folder = tmp_path / f"models--me--adapter{seed}" / "snapshots" / commit
        folder.parent.mkdir(parents=True)
        make_adapter(folder, seed)
        posterior = add_curvature(add_posterior(Posterior.from_pretrained(folder), seed), 10 * seed)
        posterior.save_pretrained(folder)
        made.append(folder)
    return made


def config(tmp_path, folders, **settings):
    adapters = [{"path": str(folder), "name": f"a{i}"} for i, folder in enumerate(folders)]
    return load_config(MergeConfig, {"adapters": adapters, "output": str(tmp_path / "out"), **settings})


def test_stored_tensors_are_those_of_the_file(folders):
    stored, loaded = (
        StoredTensors(folders[0] / "curvature.safetensors"),
        load_file(folders[0] / "curvature.safetensors"),
    )
    assert set(stored) == set(loaded) and len(stored) == len(loaded) and "other" not in stored
    assert all(torch.equal(stored[key], value) for key, value in loaded.items())
    assert stored.get("other") is None
    with pytest.raises(KeyError):
        stored["other"]


def test_a_file_that_changed_is_not_read_on(folders):
    path = folders[0] / "curvature.safetensors"
    stored = StoredTensors(path)
    key = next(iter(stored))
    save_file({key: torch.eye(3)}, path)
    with pytest.raises(PosteriorFormatError, match="was changed while it was in use; read the adapter again"):
        stored[key]
    os.remove(path)
    with pytest.raises(PosteriorFormatError, match="was changed"):
        stored[key]
    path.write_bytes(b"cut")
    with pytest.raises(PosteriorFormatError, match="truncated or damaged"):
        StoredTensors(path)


def test_damage_is_told_before_anything_is_merged(tmp_path, folders):
    path = folders[1] / "curvature.safetensors"
    tensors = load_file(path)
    key = next(iter(tensors))
    save_file({**tensors, key: torch.full_like(tensors[key], torch.nan)}, path)
    with pytest.raises(PosteriorFormatError, match=f"the curvature of {key} holds NaN"):
        run_merge(config(tmp_path, folders))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["linear", "gradient_matching"])
def test_the_same_merge_with_the_grams_of_one_module_at_a_time(tmp_path, folders, monkeypatch, method):
    alive: dict[int, weakref.ref] = {}
    most, read = [0], StoredTensors.__getitem__

    def counted(self, key):
        tensor = read(self, key)
        number = id(tensor)
        alive[number] = weakref.ref(tensor, lambda _: alive.pop(number))
        most[0] = max(most[0], len(alive))
        return tensor

    monkeypatch.setattr(StoredTensors, "__getitem__", counted)
    output = run_merge(config(tmp_path, folders, method=method, ledger="reference"))
    total = sum(len(load_file(folder / "curvature.safetensors")) for folder in folders)
    assert 0 < most[0] <= 4 < total
    want = merge_adapters([Posterior.from_pretrained(folder) for folder in folders], method=method)
    got = Posterior.from_pretrained(output)
    for part in ("mean", "hess", "curvature"):
        found, expected = getattr(got, part), getattr(want, part)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_commit_of_a_snapshot_is_in_the_lineage(tmp_path, folders):
    output = run_merge(config(tmp_path, folders))
    merged = Posterior.from_pretrained(output)
    assert [source["revision"] for source in merged.meta.sources] == list(COMMITS)
    report = json.loads((output / "merge_report.json").read_text())
    assert [source["revision"] for source in report["adapters"]] == list(COMMITS)
    again = load_config(MergeConfig, output / "merge.yaml")
    assert [source.revision for source in again.adapters] == list(COMMITS)
    ledger = json.loads((output / "merge_ledger.json").read_text())
    assert [entry["revision"] for entry in ledger["contributors"]] == list(COMMITS)
    assert all(f"a{i} @ {commit}" in (output / "README.md").read_text() for i, commit in enumerate(COMMITS))


def test_a_commit_is_the_name_of_a_snapshot_folder(tmp_path, folders):
    assert commit_of(folders[0]) == COMMITS[0]
    assert commit_of(tmp_path / COMMITS[0]) is None
    assert commit_of(tmp_path / "snapshots" / "main") is None
    plain = make_adapter(tmp_path / "plain", 3)
    assert open_adapter(str(plain))[1] is None
    assert open_adapter(str(plain), "v2")[1] == "v2"
