"""Which given answers to trust, end to end on the shipped closed-world model: fitted, verified, applied, refused."""

import json

import eval_world
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from vlora.errors import ConfigError, DataError
from vlora.eval.generation.calibrate import run_answer_calibration
from vlora.eval.generation.predict import AnswerPredictor
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior, PosteriorMeta
from vlora.recipes.calibrate import answer_calibration_table
from vlora.recipes.cli import app
from vlora.recipes.closed_world import build_world, model_folder, write_datasets
from vlora.recipes.evaluate import load_evaluation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TASK = """title: Answers that somebody gave
kind: given_answers
prompt: "{prompt}"
question: "{prompt}"
response: said
label: good
stop: []
max_new_tokens: 1
"""


def answers(rows, seed):
    """About half of the answers are right, the others another value of the relation."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rows:
        wrong = row["choices"][(row["answer"] + 1 + int(rng.integers(22))) % 24]
        good = bool(rng.random() < 0.5)
        found.append({"prompt": row["prompt"], "said": row["response"] if good else wrong, "good": int(good)})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped model with an adapter that changes nothing, and answers about people whom it knows."""
    place = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    targets = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder()), targets)
    mean = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": str(model_folder())}
    config = json.loads(json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
    hess = {key: torch.ones_like(value) for key, value in mean.items()}
    meta = PosteriorMeta(num_examples=100, ess=400.0, weight_decay=0.0, seed=1)
    Posterior(mean, hess, meta, config).save_pretrained(place / "posterior")
    paths = write_datasets(build_world(0), place / "world")
    rows = [json.loads(line) for line in paths["test"].read_text().splitlines()]
    rows = [row for row in rows if row["group"] == "base"]
    eval_world.write(place / "validation.jsonl", answers(rows[:120], 0))
    eval_world.write(place / "test.jsonl", answers(rows[120:180], 1))
    (place / "said.yaml").write_text(TASK)
    return place


def settings(folder, output, **changes):
    values = {
        "kind": "generation", "model": str(folder / "posterior"), "task": str(folder / "said.yaml"), "num_samples": 2,
        "data": {name: str(folder / f"{name}.jsonl") for name in ("test", "validation")},
        "sampling": {"num_answers": 0}, "num_bootstrap": 10, "batch_size": 64, "output": str(output),
        "calibration": {"risk": 0.2, "delta": 0.2},
    }  # fmt: skip
    return load_evaluation({**values, **changes})


@pytest.fixture(scope="module")
def fitted(folder, tmp_path_factory):
    return run_answer_calibration(settings(folder, tmp_path_factory.mktemp("fit") / "out"))


def test_the_threshold_trusts_right_answers_and_not_wrong_ones(folder, fitted):
    section = fitted[0].content["answers"]
    rule, (test,) = section["abstention"], section["verified"]
    assert (rule["score"], rule["n"], rule["risk"]) == ("token_nll", 60, 0.2)
    assert test["set"] == "test" and test["labelled"] == 60 and "unanswerable" not in test
    assert test["abstention"]["answered"] > 15 and test["abstention"]["holds"]
    assert "posterior: token_nll trusts up to" in answer_calibration_table(fitted)
    assert "    trusts " in answer_calibration_table(fitted)


def test_answers_of_new_rows_are_trusted_or_not(folder, fitted):
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    predictor = AnswerPredictor.from_pretrained(folder / "posterior")
    bare = [{"prompt": row["prompt"], "said": row["said"]} for row in rows]
    found = predictor.predict(bare)
    threshold = fitted[0].content["answers"]["abstention"]["threshold"]
    for row, one in zip(rows, found, strict=True):
        assert one.best == row["said"] and one.trusted == (one.uncertainty <= threshold)
        assert one.dont_know is not one.trusted and one.answer == (row["said"] if one.trusted else None)
    trusted = [row["good"] for row, one in zip(rows, found, strict=True) if one.trusted]
    verified = fitted[0].content["answers"]["verified"][0]["abstention"]
    assert len(trusted) == verified["answered"] and trusted.count(0) == verified["wrong"]
    every = predictor.predict(bare, answer_all=True)
    assert [one.trusted for one in every] == [one.trusted for one in found]
    assert all(one.answer == one.best for one in every)


def test_the_command_judges_a_file_and_names_what_a_row_lacks(folder, fitted, tmp_path):
    run = CliRunner().invoke(
        app, ["predict", str(folder / "posterior"), "--data", str(folder / "test.jsonl")]
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.exit_code == 0 and len(lines) == 60 and {True, False} == {one["trusted"] for one in lines}
    lone = CliRunner().invoke(app, ["predict", str(folder / "posterior"), "--text", "Who?"])
    assert lone.exit_code == 1 and "reads prompt, said; give a JSONL file" in " ".join(lone.stderr.split())
    predictor = AnswerPredictor.from_pretrained(folder / "posterior")
    with pytest.raises(DataError, match="data row 0: no column 'said'"):
        predictor.predict([{"prompt": "Who?"}])


def test_a_task_of_several_sides_is_read_as_one_answer_a_row(tmp_path):
    sides = "sides: [{response: left, correct: true}, {response: right, correct: false}]"
    sides = TASK.replace("label: good", sides)
    (tmp_path / "sides.yaml").write_text(sides)
    (row,) = TaskReader(str(tmp_path / "sides.yaml"), kind="answers")([{"prompt": "Who?", "said": "me"}])
    assert (row["prompt"], row["response"], row["id"]) == ("Who?", "me", None)


def test_a_score_of_the_question_alone_is_refused(folder, tmp_path):
    rules = {"score": "semantic_entropy"}
    with pytest.raises(
        ConfigError, match="semantic_entropy is that of a question, the same for every answer"
    ):
        run_answer_calibration(settings(folder, tmp_path / "o", calibration=rules))
