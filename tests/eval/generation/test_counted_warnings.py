"""What is odd in the data or the judge's work is told in one counted line, and nothing is lost."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_answer_estimators import record

sys.path.append(str(Path(__file__).parents[1]))
import eval_world

from vlora.errors import DataError
from vlora.eval import run as choices_run
from vlora.eval.config import EvalDataConfig
from vlora.eval.entailment import EntailmentModel
from vlora.eval.generation import run as answers_run
from vlora.eval.generation.questions import load_questions
from vlora.eval.generation.records import read_answers, to_line
from vlora.eval.items import load_items
from vlora.eval.task_files import load_task
from vlora.recipes.evaluate import load_evaluation


def test_rows_without_a_right_answer_stay_and_are_counted(tmp_path, caplog):
    rows = eval_world.questions(9, 0)
    for row in rows[::3]:
        row["answer"] = None
    test = eval_world.write(tmp_path / "test.jsonl", rows)
    held = eval_world.write(tmp_path / "held.jsonl", eval_world.questions(4, 1, answered=False))
    items = load_items("multiple_choice", EvalDataConfig(test=test, validation=held))
    assert len(items) == 13 and sum(item.example.label is None for item in items) == 7
    assert "3 of 9 test rows have no right answer: they are scored and reported by group" in caplog.text
    assert "4 of 4 validation rows have no right answer: no temperature is fitted on them" in caplog.text


def test_questions_without_a_right_answer_are_counted(tmp_path, caplog):
    rows = [{"question": f"w{n}", "answers": ["red"] if n else None} for n in range(3)]
    (tmp_path / "task.yaml").write_text("title: t\nkind: open_qa\nprompt: 'Q {question}'\n")
    values = {
        "kind": "generation", "model": "base", "task": str(tmp_path / "task.yaml"), "output": "o",
        "data": {"test": eval_world.write(tmp_path / "rows.jsonl", rows)},
    }  # fmt: skip
    config = load_evaluation(values)
    questions, _, _, _ = load_questions(config, load_task(config.task))
    assert len(questions) == 3
    assert "1 of 3 test questions have no right answer: every attempt at them counts as wrong" in caplog.text


def test_one_class_is_told(caplog):
    rows = [
        {"model": "m", "predictor": p, "group": g, "metrics": {"accuracy": {"value": v, "n": 8}}}
        for p, g, v in (("mean", "all", 1.0), ("samples", "all", 0.5), ("mean", "easy", 0.0))
    ]
    choices_run._say_one_class({"rows": rows})
    assert caplog.messages == [
        "m, mean: all 8 answers are right, so AUROC and other rankings of wrong answers are not defined"
    ]
    caplog.clear()
    answers = [
        {
            "model": m,
            "group": "all",
            "questions": 4,
            "ungraded": u,
            "judge_failures": f,
            "metrics": {"correct": {}},
        }
        for m, u, f in (("a", 0, 0), ("b", 1, 12))
    ]
    answers_run._say({"answers": answers, "estimators": [{"model": "b", "group": "all"}]})
    assert caplog.messages == [
        "a: its attempts are all right or all wrong, so no score of them can be ranked (AUROC, PRR)",
        "b: the judge gave no verdict on 12 pairs; 1 of 4 answers could not be graded, all are kept",
    ]


def test_a_judge_that_fails_speaks_once(caplog):
    judge = EntailmentModel.__new__(EntailmentModel)
    judge._warned = False
    judge._forward = lambda pairs: (_ for _ in ()).throw(RuntimeError("cannot judge"))  # type: ignore[method-assign]
    assert judge._judge([("a", "b"), ("c", "d")]) == [None, None]
    assert caplog.messages == ["the judge failed on a pair: cannot judge; further failures are only counted"]


def test_answers_of_another_version_or_cut_off_are_one_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**json.loads(to_line(record())), "later": 1}) + "\n")
    with pytest.raises(DataError, match="line 1: unknown key 'later'; a newer vlora may have written it"):
        list(read_answers(path))
    path.write_text(to_line(record()) + to_line(record())[:-40])
    with pytest.raises(DataError, match="line 2: not valid JSON .* the line may have been cut off"):
        list(read_answers(path))


def test_a_model_that_gives_nan_is_named(tmp_path):
    world = eval_world.build(tmp_path)
    shutil.copytree(world / "base", world / "broken")
    weights = load_file(world / "broken/model.safetensors")
    broken = {name: torch.full_like(value, float("nan")) for name, value in weights.items()}
    save_file(broken, world / "broken/model.safetensors", {"format": "pt"})
    (world / "task.yaml").write_text("title: t\nkind: given_answers\nprompt: 'Q {question}'\n")
    rows = [{"question": "w1", "response": "red", "label": n % 2} for n in range(4)]
    values = {
        "kind": "generation", "model": "base", "base_model": str(world / "broken"), "eigenscore": False,
        "task": str(world / "task.yaml"), "data": {"test": eval_world.write(world / "given.jsonl", rows)},
        "sampling": {"num_answers": 0}, "output": str(tmp_path / "o"),
    }  # fmt: skip
    with pytest.raises(DataError, match="model 'base' gives NaN instead of probabilities; check its weights"):
        answers_run.run_generation(load_evaluation(values))
    assert not (tmp_path / "o").exists()
