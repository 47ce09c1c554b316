"""Where an evaluation writes, under which names, and what a failing disk or an interruption leaves."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import eval_tiny
import eval_world
import pytest

import vlora.files
from vlora.config import load_config
from vlora.errors import ConfigError, DataError, OutputError
from vlora.eval.config import EvalConfig
from vlora.eval.records import read_records
from vlora.eval.report import write_report
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.posterior import Posterior


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return eval_world.build(tmp_path_factory.mktemp("world"))


def test_relative_paths_equal_names_and_no_draws(world, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/first").symlink_to(world / "first")
    monkeypatch.chdir(world)
    models = ["first", str(tmp_path / "other/first"), "./first/"]
    config = eval_world.config(world, tmp_path / "out", model=models, num_samples=0)
    results = read_results(run_eval(config) / "results.json")
    assert [model["name"] for model in results["models"]] == ["first", "first-2", "first-3"]
    assert {row["predictor"] for row in results["rows"]} == {"mean", "mean+temperature"}
    records = read_records(tmp_path / "out/records.jsonl")
    assert all(record.sample_log_probs is None for record in records)
    by_model = {
        name: [r.log_probs.tolist() for r in records if r.model == name] for name in ("first", "first-3")
    }
    assert by_model["first"] == by_model["first-3"]


def test_settings_per_tensor_are_evaluated(world, tmp_path):
    """ess and weight_decay as one number per key (what some merges write) score as the same single numbers."""
    posterior = Posterior.from_pretrained(world / "first")
    meta = posterior.meta
    ess = {key: meta.of("ess", key) for key in posterior.hess}
    decay = {key: meta.of("weight_decay", key) for key in posterior.hess}
    keyed = replace(posterior, meta=replace(meta, ess=ess, weight_decay=decay))
    keyed.save_pretrained(tmp_path / "keyed")
    config = eval_world.config(world, tmp_path / "out", model=[str(world / "first"), str(tmp_path / "keyed")])
    output = run_eval(
        config, finish=lambda folder: write_report(read_results(folder / "results.json"), folder / "r")
    )
    records = read_records(output / "records.jsonl")
    one = [r.sample_log_probs.tolist() for r in records if r.model == "first"]
    assert one == [r.sample_log_probs.tolist() for r in records if r.model == "keyed"]
    assert (output / "r").stat().st_size > 10_000


def test_class_names_come_from_training(tmp_path):
    """Rows with the names in another order, and without one of them, are still scored by the head's order."""
    base = eval_tiny.save_base(tmp_path / "base", eval_tiny.bert(3))
    _, posterior = eval_tiny.adapted(eval_tiny.bert(3), "SEQ_CLS", 0)
    named = replace(posterior, meta=replace(posterior.meta, labels=["neg", "neutral", "pos"]))
    named.save_pretrained(tmp_path / "a")
    rows = [{"text": f"w{i} red", "label": ["pos", "neg"][i % 2]} for i in range(8)]
    values = {
        "model": str(tmp_path / "a"),
        "base_model": base,
        "task": "sequence_classification",
        "data": {"test": eval_world.write(tmp_path / "test.jsonl", rows)},
        "num_samples": 0,
        "num_bootstrap": 10,
        "output": str(tmp_path / "out"),
    }
    records = read_records(run_eval(load_config(EvalConfig, values)) / "records.jsonl")
    assert [record.label for record in records] == [2, 0] * 4
    assert records[0].choices == ("neg", "neutral", "pos")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["move_into_place", "fsync"])
def test_a_full_disk_keeps_the_former_evaluation_and_what_was_scored(world, tmp_path, monkeypatch, place):
    config = eval_world.config(world, tmp_path / "out", model=["base", str(world / "first")])
    run_eval(replace(config, num_samples=0))
    before = _contents(tmp_path / "out")

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(vlora.files, place, full)
        with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
            run_eval(replace(config, overwrite=True))
    assert "\n" not in str(caught.value)
    assert _contents(tmp_path / "out") == before
    monkeypatch.setattr("vlora.eval.prepare.Host", None)  # what was scored is kept: no model is needed
    run_eval(replace(config, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_disk_full_from_the_start_leaves_nothing(world, tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run_eval(eval_world.config(world, tmp_path / "out", model="base"))
    assert not list(tmp_path.iterdir())


def test_no_output_without_what_finishes_it(world, tmp_path):
    """A report that cannot be drawn leaves no half evaluation that a second run would take for a whole one."""
    config = eval_world.config(world, tmp_path / "out", model="base")

    def interrupted(folder: Path) -> None:
        assert json.loads((folder / "results.json").read_text())["models"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_eval(config, finish=interrupted)
    assert not (tmp_path / "out").exists()
    output = run_eval(config, finish=lambda folder: (folder / "report.html").write_text("report"))
    assert (output / "report.html").read_text() == "report"


def test_odd_draws_need_independent_ones(world, tmp_path):
    with pytest.raises(ConfigError, match="num_samples must be even, got 3; set antithetic: false"):
        eval_world.config(world, tmp_path / "out", num_samples=3)
    config = eval_world.config(
        world, tmp_path / "out", model=str(world / "first"), num_samples=3, antithetic=False
    )
    records = read_records(run_eval(config) / "records.jsonl")
    assert records[0].sample_log_probs.shape[0] == 3 and not records[0].antithetic


def test_places_and_seeds_that_are_not_there_are_named(world, tmp_path):
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=f"device: '{device}' cannot be used here") as caught:
            run_eval(eval_world.config(world, tmp_path / "out", model="base", device=device))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="seed must be from 0"):
        eval_world.config(world, tmp_path / "out", seed=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["multiple_choice", "causal_lm"])
def test_a_base_model_with_nan_is_named_with_the_row(world, tmp_path, task):
    broken = eval_tiny.llama()
    broken.model.norm.weight.data[0] = float("nan")
    base = eval_tiny.save_base(tmp_path / "base", broken)
    changes = {"data": {"test": str(world / "test.jsonl"), "text": "question"}} if task == "causal_lm" else {}
    config = eval_world.config(
        world, tmp_path / "out", model="base", base_model=base, task=task, num_samples=0, **changes
    )
    with pytest.raises(
        DataError, match="model 'base' gives NaN instead of probabilities for test/[0-9]+; check its"
    ):
        run_eval(config)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
