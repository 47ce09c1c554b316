"""``task: NAME`` with a folder becomes an ordinary configuration and runs through the scoring of choices."""

import json

import eval_world
import numpy as np
import pytest

from vlora.config import load_config, save_config
from vlora.errors import ConfigError, DataError
from vlora.eval.config import EvalConfig
from vlora.eval.records import read_records
from vlora.eval.run import run_eval
from vlora.eval.task_config import expand_task
from vlora.eval.task_files import load_task, task_sha256
from vlora.eval.task_scores import TASK_SCORES
from vlora.recipes.evaluate import evaluate, load_evaluation


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return eval_world.build(tmp_path_factory.mktemp("world"))


def test_a_folder_and_a_name_are_spelled_out(tmp_path):
    eval_world.write(tmp_path / "dev.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": 0}])
    values = {"model": "base", "task": "siqa", "data": str(tmp_path), "output": "out"}
    config = load_evaluation(values)
    assert isinstance(config, EvalConfig) and config.task == "multiple_choice"
    assert config.data.test == str(tmp_path / "dev.jsonl") and config.data.task_file == "siqa"
    save_config(config, tmp_path / "config.yaml")
    assert load_evaluation(tmp_path / "config.yaml") == config
    values["data"] = {"folder": str(tmp_path), "max_rows": 3}
    assert load_evaluation(values).data.max_rows == 3


def test_without_data_the_hub_is_read():
    data = expand_task({"task": "arc_easy"})["data"]
    assert data["test"] == {"path": "allenai/ai2_arc", "name": "ARC-Easy", "revision": None, "split": "test"}
    assert data["validation"]["split"] == "validation" and "fewshot" not in data


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'openbookqa'"):
        load_evaluation({"model": "base", "task": "openbokqa", "data": "x", "output": "o"})
    with pytest.raises(ConfigError, match="add kind: generation"):
        expand_task({"task": "nq_open", "data": str(tmp_path)})
    with pytest.raises(ConfigError, match="siqa has no place on the hub"):
        expand_task({"task": "siqa"})
    with pytest.raises(DataError, match=r"holds no test file \(test, dev, .*it holds nothing"):
        expand_task({"task": "siqa", "data": str(tmp_path)})
    with pytest.raises(ConfigError, match="data.prompt: task siqa says how rows are read"):
        expand_task({"task": "siqa", "data": {"test": "x.jsonl", "prompt": "y"}})
    with pytest.raises(ConfigError, match="kind"):
        load_evaluation({"kind": "genration", "model": "base"})


def test_a_task_scores_as_the_same_rows_written_by_hand(world, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "title: mine\nkind: multiple_choice\nprompt: 'who {question}'\ngroup: kind\n"
    )
    values = {
        "model": str(world / "first"), "base_model": str(world / "base"), "task": str(tmp_path / "mine.yaml"),
        "data": {"test": str(world / "test.jsonl"), "validation": str(world / "validation.jsonl"), "max_rows": 9},
        "num_samples": 2, "num_bootstrap": 20, "output": str(tmp_path / "out"),
    }  # fmt: skip
    found = read_records(run_eval(load_evaluation(values)) / "records.jsonl")
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    by_hand = load_config(
        EvalConfig,
        {
            **values, "task": "multiple_choice", "output": str(tmp_path / "hand"),
            "data": {**values["data"], "prompt": "who {question}", "group": "kind"},
        },
    )  # fmt: skip
    expected = read_records(run_eval(by_hand) / "records.jsonl")
    assert len(found) == len(expected) == 18
    for one, two in zip(found, expected, strict=True):
        assert (one.group, one.label, one.choices, one.text) == (two.group, two.label, two.choices, two.text)
        assert one.sample_log_probs is not None and two.sample_log_probs is not None
        assert np.allclose(one.sample_log_probs, two.sample_log_probs)
    assert {record.group for record in found} == {"easy", "hard", "validation"} and len(rows) == 24


def test_a_task_without_groups_runs(world, tmp_path):
    values = {
        "model": "base", "base_model": str(world / "base"), "task": "arc_easy", "data": str(world / "test.jsonl"),
        "num_samples": 0, "num_bootstrap": 20, "output": str(tmp_path / "out"),
    }  # fmt: skip
    output = run_eval(load_evaluation(values))
    assert {record.group for record in read_records(output / "records.jsonl")} == {"test"}


def test_truthfulqa_scores_stand_beside_the_results(world, tmp_path):
    rows = [
        {"question": f"w{n}", "category": "c", "best_answer": "red", "correct": ["red", "dark green"],
         "incorrect": ["blue", "w1 w2", "w3"][: 1 + n % 3]}
        for n in range(7)
    ]  # fmt: skip
    path = eval_world.write(tmp_path / "t.jsonl", rows)
    values = {
        "model": [str(world / "first"), "base"], "base_model": str(world / "base"), "task": "truthfulqa_mc2",
        "data": path, "num_samples": 2, "num_bootstrap": 20, "output": str(tmp_path / "out"),
    }  # fmt: skip
    output = evaluate(load_evaluation(values))
    scores = json.loads((output / TASK_SCORES).read_text())
    assert [(r["model"], r["predictor"]) for r in scores["rows"]] == [
        ("first", "mean"), ("first", "samples"), ("base", "mean"),
    ]  # fmt: skip
    records = [r for r in read_records(output / "records.jsonl") if r.model == "base"]
    probs = [np.exp(np.asarray(r.log_probs)) for r in records]
    mc2 = scores["rows"][2]["metrics"]["mc2"]
    assert mc2["value"] == pytest.approx(np.mean([p[:2].sum() for p in probs])) and mc2["n"] == 7
    mc1 = scores["rows"][2]["metrics"]["mc1"]["value"]
    assert mc1 == pytest.approx(np.mean([p.argmax() == 0 for p in probs]))
    assert scores["task_sha256"] == task_sha256(load_task("truthfulqa_mc2"))
