"""Golden identities of merges into a model: they hold for every method, and what breaks them is noticed."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoint_cases import llama, lora, merge, odd_tensors, raw_model, save_model, tensors_of

from vlora.errors import IdentityError
from vlora.merge.checkpoints import engine, model_draft, run, verify
from vlora.merge.checkpoints.config import MODEL_METHODS
from vlora.merge.checkpoints.gram_files import NEEDS_GRAMS
from vlora.merge.checkpoints.headers import TensorEntry
from vlora.merge.checkpoints.rules import WeightedMean


@pytest.fixture
def world(tmp_path):
    base = odd_tensors(0)
    raw_model(tmp_path / "base", base)
    for seed, name in enumerate("ab", 1):
        raw_model(tmp_path / name, odd_tensors(seed, start=base))
        raw_model(tmp_path / f"fisher-{name}", {k: v.square() for k, v in odd_tensors(seed + 7).items()})
    return tmp_path


def merged(world, method, **options):
    models = [
        {
            "path": str(world / n),
            "weight": w,
            **({"fisher": str(world / f"fisher-{n}")} if method == "fisher" else {}),
        }
        for n, w in (("a", 1.0), ("b", 3.0))
    ]
    base = {} if method in ("linear", "fisher") else {"base_model": str(world / "base")}
    return merge(world / "out", method=method, models=models, **base, **options)


def identities(out):
    return json.loads((out / "merge.json").read_text())["identities"]


@pytest.mark.parametrize(
    "method", [m for m in MODEL_METHODS if m not in NEEDS_GRAMS]
)  # those: test_gram_methods
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_hold_for_every_method(world, method, dtype):
    out = merged(world, method, dtype=dtype, max_shard_size="300KB")
    found = identities(out)
    assert found["tensors"] == ["big.weight", "scalar.weight", "wide.weight"]
    assert found["single"] <= 1e-6 and found["written"] == 0 and found["permutation"] <= 1e-6
    sums = method in ("linear", "task_arithmetic", "tsv", "iso_c")  # the last two: where there is no matrix
    assert found["linear"] <= (2e-3 if sums and dtype == "bfloat16" else 3e-7)
    assert found["linear"] > 1e-5 or not (sums and dtype == "bfloat16")  # the rounding of the output is in it
    assert "Golden identities on big.weight, scalar.weight, wide.weight" in (out / "README.md").read_text()


def test_a_sum_that_is_wrong_is_not_written(world, monkeypatch):
    tile = WeightedMean.tile
    monkeypatch.setattr(WeightedMean, "tile", lambda *args: tile(*args).mul_(1 + 1e-4))
    with pytest.raises(
        IdentityError, match=r"'single' fails in .*: relative difference 0\.0001, .* nothing was"
    ):
        merged(world, "linear")
    assert not list(world.glob("*out*"))
    assert merged(world, "linear", verify=False).is_dir() and identities(world / "out") == {}


@pytest.mark.parametrize("method", ["linear", "dare_ties"])
def test_a_method_that_depends_on_the_order_is_not_written(world, monkeypatch, method):
    """A first input that counts a little more, and masks that belong to a place in the list."""
    honest = verify.rule_for

    def by_place(method, case, options):
        if len(case.weights) > 1 and method == "linear":
            case = replace(case, weights=[case.weights[0] * (1 + 1e-4), *case.weights[1:]])
        return honest(method, replace(case, contents=[str(i) for i in range(len(case.weights))]), options)

    for module in (model_draft, verify):
        monkeypatch.setattr(module, "rule_for", by_place)
    with pytest.raises(IdentityError, match=r"'permutation' fails in .*: relative difference .* nothing was"):
        merged(world, method)
    assert not list(world.glob("*out*"))


def test_a_permutation_takes_two(world):
    out = merge(world / "one", models=[{"path": str(world / "a")}])
    assert identities(out)["permutation"] == "one model only"


def test_bytes_that_went_astray_are_noticed(world, monkeypatch):
    write = engine._write

    def astray(descriptor, values, offset):
        values = values.clone()
        values.view(-1)[0] += 1e-3
        write(descriptor, values, offset)

    monkeypatch.setattr(engine, "_write", astray)
    with pytest.raises(IdentityError, match="golden identity '(linear|written)' fails in"):
        merged(world, "ties")


def test_a_reader_that_is_off_by_one_is_noticed(world, monkeypatch):
    made = run.make_plan

    def shifted(config):
        plan = made(config)
        for i, job in enumerate(plan.draft.jobs):
            moved = [TensorEntry(e.name, e.dtype, e.shape, e.path, e.start + 4) for e in job.inputs]
            if job.name == "big.weight":
                plan.draft.jobs[i] = replace(job, inputs=tuple(moved))
        return plan

    monkeypatch.setattr(run, "make_plan", shifted)
    with pytest.raises(IdentityError, match="golden identity 'single' fails in big.weight"):
        merged(world, "linear")


@pytest.mark.parametrize("method", ["linear", "ties", "gradient_matching"])
def test_adapters_into_a_base(tmp_path, method):
    base = save_model(tmp_path / "base", llama(), torch.bfloat16)
    adapters = [{"path": str(lora(tmp_path / n, llama(), seed=i))} for i, n in enumerate("ab", 1)]
    values = {"into": "model", "base_model": str(base), "adapters": adapters, "method": method, "rank": None}
    out = merge(tmp_path / "out", **values)
    found = identities(out)
    assert len(found["tensors"]) == 3 and all(name in tensors_of(out) for name in found["tensors"])
    assert (found["single"], found["written"]) == ("holds for adapters", 0.0)
    if method == "ties":  # dense updates are merged on the way
        assert found["permutation"] <= 1e-6
    else:
        assert found["permutation"] == "holds for adapters"
        report = json.loads((out / "merge.json").read_text())["adapters"]
        assert report["identities"]["permutation"] <= 1e-6
    assert found["linear"] <= 8e-3
