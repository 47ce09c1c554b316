"""Killed evaluations continue, bad input is refused in one line, and nothing of anyone else's is touched."""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import eval_tiny
import eval_world
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from vlora.errors import ConfigError, DataError, OutputExistsError, PosteriorFormatError
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.posterior import Posterior, fingerprint_weights


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return eval_world.build(tmp_path_factory.mktemp("world"))


def _count_forward(monkeypatch) -> list[int]:
    """Rows of every forward pass from now on."""
    rows, real = [], LlamaForCausalLM.forward

    @functools.wraps(real)
    def counted(self, input_ids=None, **inputs):
        rows.append(len(input_ids))
        return real(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    return rows


KILLED = """
import os, signal, sys
from transformers import LlamaForCausalLM
sys.path[:0] = {paths!r}
import eval_world
from pathlib import Path
from vlora.eval.run import run_eval
real, calls = LlamaForCausalLM.forward, []
def dies(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **kwargs)
dies.__signature__ = __import__("inspect").signature(real)
LlamaForCausalLM.forward = dies
run_eval(eval_world.config(Path({world!r}), Path({output!r}), batch_size=2))
"""


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_with_kill_9_ends_with_the_same_bits(world, tmp_path, monkeypatch):
    whole = run_eval(eval_world.config(world, tmp_path / "whole", batch_size=2))
    output = tmp_path / "killed"
    code = KILLED.format(paths=[str(Path(__file__).parent)], world=str(world), output=str(output))
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums are split by threads, and round accordingly
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=one_thread)
    assert done.returncode == -9, done.stderr
    assert not output.exists()
    [file] = (tmp_path / "killed.work").glob("*.jsonl")
    assert 2 <= len(file.read_bytes().splitlines()) <= 8  # killed in the midst of the first model
    with open(file, "ab") as torn:
        torn.write(b'{"draws": ["mean", "0+"], "items": ["ab')
    rows = _count_forward(monkeypatch)
    run_eval(eval_world.config(world, output, batch_size=2))
    again = len(rows)
    rows.clear()
    run_eval(eval_world.config(world, tmp_path / "afresh", batch_size=2))
    assert 0 < again < len(rows)
    assert (output / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert read_results(output / "results.json")["rows"] == read_results(whole / "results.json")["rows"]
    assert not (tmp_path / "killed.work").exists()


def test_everything_is_computed_again_without_a_model(world, tmp_path, monkeypatch):
    config = eval_world.config(world, tmp_path / "out", num_bootstrap=20)
    run_eval(config)
    first = (tmp_path / "out/records.jsonl").read_bytes()
    cost = read_results(tmp_path / "out/results.json")["cost"]
    monkeypatch.setattr("vlora.eval.prepare.Host", None)  # loading anything would fail
    data = {"test": str(world / "test.jsonl"), "validation": str(world / "validation.jsonl"), "group": "kind"}
    changed = replace(config, overwrite=True, num_bootstrap=60)
    run_eval(changed)
    assert (tmp_path / "out/records.jsonl").read_bytes() == first
    again = read_results(tmp_path / "out/results.json")
    assert again["settings"]["num_bootstrap"] == 60
    assert again["cost"]["forward_tokens"] == cost["forward_tokens"]
    fewer = eval_world.config(world, tmp_path / "out", num_samples=2, data=data, overwrite=True)
    run_eval(fewer)
    records = [r for r in read_records(tmp_path / "out/records.jsonl") if r.model == "first"]
    assert len(records) == 36 and all(len(r.sample_log_probs) == 2 for r in records)


def test_more_draws_find_the_earlier_ones(world, tmp_path, monkeypatch):
    store = str(tmp_path / "store")
    changes = {"model": [str(world / "first")], "store": store}
    run_eval(eval_world.config(world, tmp_path / "four", **changes))
    rows = _count_forward(monkeypatch)
    run_eval(eval_world.config(world, tmp_path / "eight", num_samples=8, **changes))
    more = sum(rows)
    rows.clear()
    run_eval(eval_world.config(world, tmp_path / "alone", num_samples=8, model=[str(world / "first")]))
    assert more < 0.7 * sum(rows)  # four new vectors of nine
    assert len(list(Path(store).iterdir())) == 1 and not (tmp_path / "eight/scores").exists()
    four, eight, alone = (
        read_records(tmp_path / name / "records.jsonl") for name in ("four", "eight", "alone")
    )
    for left, middle, right in zip(four, eight, alone, strict=True):
        np.testing.assert_array_equal(left.log_probs, middle.log_probs)
        np.testing.assert_array_equal(left.sample_log_probs, middle.sample_log_probs[:4])
        np.testing.assert_allclose(middle.sample_log_probs, right.sample_log_probs, atol=1e-5)


@pytest.mark.parametrize("change", ["setting", "labels", "data", "adapter", "damage"])
def test_only_what_changed_is_scored_again(world, tmp_path, monkeypatch, change):
    local = tmp_path / "world"
    shutil.copytree(world, local)
    rows = _count_forward(monkeypatch)
    options = {"model": [str(local / "first"), "base"], "store": str(tmp_path / "store")}
    run_eval(eval_world.config(local, tmp_path / "a", **options))
    before, questions = sum(rows), eval_world.questions(24, 0)
    rows.clear()
    if change == "setting":
        options["data"] = {"test": str(local / "test.jsonl"), "separator": "  "}
    if change == "labels":
        eval_world.write(local / "test.jsonl", [{**row, "answer": 1 - row["answer"]} for row in questions])
    if change == "data":
        eval_world.write(local / "test.jsonl", [*questions[:-1], *eval_world.questions(1, 9)])
    if change == "adapter":
        Posterior.from_pretrained(local / "second").save_pretrained(local / "first", overwrite=True)
    if change == "damage":
        file = max((tmp_path / "store").iterdir(), key=lambda path: path.stat().st_size)
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join([*lines[:-1], lines[-1][: len(lines[-1]) // 2]]))
    run_eval(eval_world.config(local, tmp_path / "b", **options))
    assert (len(rows) > 0) == (change != "labels")
    assert change == "setting" or sum(rows) < before


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


def test_scores_that_cannot_be_read_stay_beside_the_new_ones(world, tmp_path):
    config = eval_world.config(world, tmp_path / "out", model="base", num_samples=0, num_bootstrap=10)
    (path,) = (run_eval(config) / "scores").glob("*.jsonl")
    whole = path.read_bytes()
    damaged = b"{" + whole
    path.write_bytes(damaged)
    run_eval(replace(config, overwrite=True))
    assert path.with_name(f"{path.name}.1.aside").read_bytes() == damaged
    assert path.read_bytes().splitlines()[0] == whole.splitlines()[0]
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]  # no work folder stays behind


def _scores(folder):
    return {path.name: path.read_bytes() for path in (folder / "scores").iterdir()}


@pytest.mark.parametrize("killed", ["no", "while copying", "while scoring", "while moving"])
def test_overwriting_keeps_the_scores_of_other_models_and_versions(world, tmp_path, monkeypatch, killed):
    first = {"num_samples": 0, "num_bootstrap": 10, "overwrite": True}
    output = tmp_path / "out"
    earlier = eval_world.config(world, output, model=["base", str(world / "plain")], **first)
    run_eval(earlier)
    (output / "scores/0123.jsonl").write_text('{"format": 7, "content": {}}\n{"later": 1}\n')
    (output / "scores/4567.jsonl.1.aside").write_text("once set aside\n")
    before = _scores(output)
    assert len(before) == 4  # two models, and the two written here
    second = eval_world.config(world, output, model=[str(world / "second")], **first)
    broken = {
        "while copying": "vlora.eval.run.open_scores",
        "while scoring": "vlora.eval.run.compute_results",
        "while moving": "vlora.eval.run.clear_work",
    }
    if killed != "no":
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(broken[killed], _interrupt)
            run_eval(second)
    if killed == "while copying":
        (tmp_path / "out.work/0123.jsonl").rename(tmp_path / "out.work/.0123.jsonl.tmp-9")
    run_eval(second)
    after = _scores(output)
    assert before.items() < after.items() and len(after) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    monkeypatch.setattr("vlora.eval.prepare.Host", None)  # loading anything would fail
    run_eval(earlier)
    assert _scores(output) == after


def _interrupt(*_, **__):
    raise KeyboardInterrupt
