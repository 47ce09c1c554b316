"""Killed evaluations continue, bad input is refused in one line, and nothing of anyone else's is touched."""

import shutil
from dataclasses import replace
from pathlib import Path

import eval_tiny
import eval_world
import pytest

from vlora.errors import ConfigError, DataError, OutputExistsError, PosteriorFormatError
from vlora.eval import run as run_module
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.posterior import Posterior, fingerprint_weights


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return eval_world.build(tmp_path_factory.mktemp("world"))


def test_killed_run_continues_and_ends_with_the_same_numbers(world, tmp_path, monkeypatch):
    whole = run_eval(eval_world.config(world, tmp_path / "whole"))
    scored, real = [], run_module._score

    def dies_at_the_third(evaluation, subject, tick):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(subject.name)
        return real(evaluation, subject, tick)

    monkeypatch.setattr(run_module, "_score", dies_at_the_third)
    config = eval_world.config(world, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        run_eval(config)
    assert not (tmp_path / "killed").exists()
    assert len(list((tmp_path / "killed.work").iterdir())) == 4

    def counts(evaluation, subject, tick):
        scored.append(subject.name)
        return real(evaluation, subject, tick)

    monkeypatch.setattr(run_module, "_score", counts)
    output = run_eval(config)
    assert scored == ["first", "adamw", "base"]
    assert (output / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert read_results(output / "results.json")["rows"] == read_results(whole / "results.json")["rows"]
    assert not (tmp_path / "killed.work").exists()


@pytest.mark.parametrize("change", ["setting", "data", "adapter", "damage"])
def test_finished_models_are_scored_again_when_anything_changed(world, tmp_path, monkeypatch, change):
    local = tmp_path / "world"
    shutil.copytree(world, local)
    scored, real = [], run_module._score
    monkeypatch.setattr(run_module, "compute_results", lambda *args, **kwargs: 1 / 0)

    def counts(evaluation, subject, tick):
        scored.append(subject.name)
        return real(evaluation, subject, tick)

    monkeypatch.setattr(run_module, "_score", counts)
    for round in range(2):
        with pytest.raises(ZeroDivisionError):
            changes = {"num_samples": 2} if round and change == "setting" else {}
            run_eval(
                eval_world.config(local, tmp_path / "out", model=[str(local / "first"), "base"], **changes)
            )
        if change == "data":
            eval_world.write(local / "test.jsonl", eval_world.questions(24, 7))
        if change == "adapter":
            posterior = Posterior.from_pretrained(local / "second")
            posterior.save_pretrained(local / "first", overwrite=True)
        if change == "damage":
            [file] = (tmp_path / "out.work").glob("first-*.records.jsonl")
            file.write_text(file.read_text()[:-30])
    again = {"setting": 2, "data": 2, "adapter": 1, "damage": 1}[change]
    assert len(scored) == 2 + again


def test_bad_input_is_refused_in_one_line_and_changes_nothing(world, tmp_path):
    output = tmp_path / "out"
    data = {"test": str(world / "test.jsonl")}
    with pytest.raises(
        DataError, match=r"test row 0: no column 'solution'; the columns are question, choices"
    ):
        run_eval(eval_world.config(world, output, data={**data, "answer": "solution"}))
    with pytest.raises(DataError, match="no test row has a right answer"):
        run_eval(eval_world.config(world, output, data={"test": str(world / "unknown.jsonl")}))
    with pytest.raises(ConfigError, match=r"detect.x: no group 'nobody'; the data hold easy, hard, unknown"):
        run_eval(
            eval_world.config(world, output, detect={"x": {"positive": ["nobody"], "negative": ["easy"]}})
        )
    with pytest.raises(DataError, match="'all' is the name for all test rows"):
        rows = [{**row, "kind": "all"} for row in eval_world.questions(4, 0)]
        badly_named = {"test": eval_world.write(world / "all.jsonl", rows), "group": "kind"}
        run_eval(eval_world.config(world, output, data=badly_named))
    with pytest.raises(PosteriorFormatError, match="no folder .*absent"):
        run_eval(eval_world.config(world, output, model=str(world / "absent")))
    with pytest.raises(ConfigError, match="base_model is needed"):
        run_eval(eval_world.config(world, output, model="base", base_model=None))
    with pytest.raises(ConfigError, match="num_samples must be even, got 3"):
        eval_world.config(world, output, num_samples=3)
    with pytest.raises(ConfigError, match=r"did you mean 'num_samples'"):
        eval_world.config(world, output, num_sample=4)
    with pytest.raises(ConfigError, match="name 'a' is given twice"):
        run_eval(
            eval_world.config(world, output, model=[{"path": "x", "name": "a"}, {"path": "y", "name": "a"}])
        )
    assert not list(tmp_path.iterdir())


def test_adapter_of_another_base_is_refused_before_anything_is_scored(world, tmp_path):
    other = eval_tiny.save_base(tmp_path / "other", eval_tiny.llama(seed=9))
    posterior = Posterior.from_pretrained(world / "first")
    meta = replace(
        posterior.meta, base_model={"id": "tiny", "fingerprint": fingerprint_weights(str(world / "base"))}
    )
    replace(posterior, meta=meta).save_pretrained(tmp_path / "mine")
    with pytest.raises(
        PosteriorFormatError, match=r"adapter 'mine' was trained on tiny \(weights .*\), not on"
    ):
        run_eval(
            eval_world.config(
                world, tmp_path / "out", model=["base", str(tmp_path / "mine")], base_model=other
            )
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.work").exists()


def test_output_that_holds_something_is_kept(world, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExistsError, match="holds something else .*thesis.tex"):
        run_eval(eval_world.config(world, output, overwrite=True))
    assert (output / "thesis.tex").read_text() == "years of work"
    (output / "thesis.tex").unlink()
    config = eval_world.config(world, output, model="base")
    run_eval(config)
    with pytest.raises(OutputExistsError, match="already holds a result; set overwrite=true"):
        run_eval(config)
    first = (output / "records.jsonl").read_bytes()
    run_eval(replace(config, overwrite=True))
    assert (output / "records.jsonl").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
