"""``vlora predict`` by a task file: rows as the task has them, no right answers, and what was calibrated with it."""

import json

import eval_world
import pytest

from vlora.config import load_config
from vlora.errors import ConfigError, DataError
from vlora.eval.calibrate import run_calibration
from vlora.eval.config import EvalConfig
from vlora.eval.predict import Predictor
from vlora.eval.task_config import expand_task
from vlora.posterior import Posterior
from vlora.recipes.predict import rows_for

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MINE = "title: mine\nkind: multiple_choice\nprompt: 'who {{question}}'\ncolumns: {{answer: key}}\n{more}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Rows with the answer under another name, rows without, and two task files."""
    folder = eval_world.build(tmp_path_factory.mktemp("tasks"))
    (folder / "mine.yaml").write_text(MINE.format(more=""))
    (folder / "shots.yaml").write_text(MINE.format(more="fewshot: {num_shots: 2}\n"))
    for name, seed in (("test", 0), ("validation", 1), ("train", 3)):
        rows = [{**row, "key": row.pop("answer")} for row in eval_world.questions(12, seed)]
        eval_world.write(folder / f"{name}.jsonl", rows)
    bare = [{k: v for k, v in row.items() if k != "answer"} for row in eval_world.questions(6, 4)]
    eval_world.write(folder / "bare.jsonl", [{**row, "id": f"r{n}"} for n, row in enumerate(bare)])
    return folder


def predictor(world, name="first", **settings):
    return Predictor.from_pretrained(
        world / name, base_model=str(world / "base"), **{"num_samples": 2, **settings}
    )


def test_a_task_asks_as_its_rows_written_by_hand(world):
    rows = [json.loads(line) for line in (world / "bare.jsonl").read_text().splitlines()]
    found = predictor(world, task=str(world / "mine.yaml")).predict(rows)
    by_hand = predictor(world, task="multiple_choice", row_format={"prompt": "who {question}"}).predict(rows)
    assert found == by_hand and [one.item for one in found] == [f"r{n}" for n in range(6)]


def test_examples_stand_in_front_and_are_asked_for(world):
    rows = [json.loads(line) for line in (world / "bare.jsonl").read_text().splitlines()]
    task = str(world / "shots.yaml")
    with pytest.raises(DataError, match="give data.fewshot, the rows to take them from"):
        predictor(world, task=task).predict(rows)
    found = predictor(world, task=task, fewshot=str(world / "train.jsonl"))
    assert found.reader is not None
    prompts = [row["prompt"] for row in found.reader(rows)]
    assert all(prompt.count("who Q") == 3 for prompt in prompts)
    taken = predictor(world, task=task)
    assert len(rows_for(taken, str(world))) == 12  # the folder's test rows, and its examples
    assert taken.reader is not None and [row["prompt"] for row in taken.reader(rows)] == prompts


def test_a_calibration_with_a_task_is_applied_to_its_rows(world, tmp_path):
    values = {
        "model": str(world / "second"), "base_model": str(world / "base"), "task": str(world / "mine.yaml"),
        "data": str(world), "num_samples": 2, "output": str(tmp_path / "o"),
        "calibration": {"ladder": [0.5, 1], "refine": 0, "alpha": [0.3], "risk": 0.9, "delta": 0.5},
    }  # fmt: skip
    values["data"] = {"test": str(world / "test.jsonl"), "validation": str(world / "validation.jsonl")}
    run_calibration(load_config(EvalConfig, values, expand=expand_task))
    section = Posterior.from_pretrained(world / "second").calibration["decisions"]
    assert section["task_file"] == str(world / "mine.yaml") and len(section["task_sha256"]) == 64
    rows = [json.loads(line) for line in (world / "bare.jsonl").read_text().splitlines()]
    found = predictor(world, "second", num_samples=None).predict(rows, answer_all=True)
    assert all(one.prediction_set is not None for one in found)
    (world / "copy.yaml").write_text((world / "mine.yaml").read_text())
    again = predictor(world, "second", num_samples=None, task=str(world / "copy.yaml"))
    assert again.predict(rows, answer_all=True) == found  # the same task by another name
    with pytest.raises(
        ConfigError, match=r"but the calibration was fitted with .*mine.yaml, asked in another"
    ):
        predictor(world, "second", num_samples=None, task="siqa")


def test_the_command_reads_a_task_and_refuses_others(world, capsys):
    base = ("predict", world / "first", "--base-model", world / "base", "--num-samples", 2)
    mine = ("--task", world / "mine.yaml")
    assert eval_world.command(*base, *mine, "--data", world / "bare.jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in lines] == [f"r{n}" for n in range(6)]
    assert eval_world.command(*base, *mine, "--data", world) == 0  # the folder's test rows
    assert len(capsys.readouterr().out.splitlines()) == 12
    for wrong, message in (
        (("--task", "siqaa", "--data", world / "bare.jsonl"), "did you mean 'siqa'?"),
        (
            ("--task", "halueval_qa", "--data", world / "bare.jsonl"),
            "data row 0: no column 'knowledge'",
        ),
        (("--task", "winogrande", "--data", world / "bare.jsonl"), "data row 0: no '_' in the sentence"),
        ((*mine, "--text", "Q", "--choice", "a", "--choice", "b"), "--text cannot fill the columns of task"),
        (("--task", "multiple_choice", "--fewshot", "x", "--data", "y"), "the prompts of a task file"),
        (("--data", world / "bare.jsonl"), "multiple_choice or the name of a task file where nothing was"),
    ):
        assert eval_world.command(*base, *wrong) == 1
        message_seen = capsys.readouterr().err
        assert message in message_seen and message_seen.count("\n") == 1
