"""A threshold for generated answers end to end, on the shipped closed-world model: fitted, stored, applied, refused."""

import json
import logging
import shutil

import eval_world
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from vlora.errors import ConfigError, DataError, PosteriorFormatError
from vlora.eval.calibrate import run_calibration
from vlora.eval.generation import collect
from vlora.eval.generation.calibrate import run_answer_calibration
from vlora.eval.generation.estimators import confidences, item_scores
from vlora.eval.generation.predict import AnswerPredictor
from vlora.eval.generation.records import read_answers
from vlora.eval.generation.run import ANSWERS, run_generation
from vlora.posterior import Posterior, PosteriorMeta
from vlora.recipes.calibrate import calibrate
from vlora.recipes.cli import app
from vlora.recipes.closed_world import build_world, model_folder, write_datasets
from vlora.recipes.evaluate import load_evaluation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GROUPS = ("base", "unknown")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped model with an adapter that changes nothing on average, and questions about known and unknown."""
    place = tmp_path_factory.mktemp("open")
    torch.manual_seed(0)
    targets = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder()), targets)
    mean = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": str(model_folder())}
    config = json.loads(json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
    hess = {key: torch.ones_like(value) for key, value in mean.items()}
    meta = PosteriorMeta(num_examples=100, ess=400.0, weight_decay=0.0, seed=1)
    Posterior(mean, hess, meta, config).save_pretrained(place / "posterior")
    Posterior(mean, {}, meta, config).save_pretrained(place / "plain")
    paths = write_datasets(build_world(0), place / "world")
    rows = [json.loads(line) for line in paths["test"].read_text().splitlines()]
    kinds = {name: [row for row in rows if row["group"] == name] for name in GROUPS}
    known, unknown = kinds["base"], kinds["unknown"]
    for row in unknown:
        row["response"] = None  # nobody's name: there is no right answer
    eval_world.write(place / "validation.jsonl", [*known[:100], *unknown[:40]])
    eval_world.write(place / "test.jsonl", [*known[100:150], *unknown[40:60]])
    eval_world.write(place / "nobody.jsonl", unknown[60:90])
    return place


def settings(folder, output, **changes):
    values = {
        "kind": "generation", "model": str(folder / "posterior"), "task": "closed_world", "num_samples": 4,
        "data": {"test": str(folder / "test.jsonl"), "validation": str(folder / "validation.jsonl"),
                 "ood": {"nobody": str(folder / "nobody.jsonl")}},
        "sampling": {"num_answers": 2}, "num_bootstrap": 10, "output": str(output),
        "calibration": {"score": "scored_semantic_total", "confidence": "mixture", "risk": 0.2, "delta": 0.2},
    }  # fmt: skip
    return load_evaluation({**values, **changes})


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """The posterior with its fitted answers."""
    (done,), _ = calibrate(settings(folder, tmp_path_factory.mktemp("c") / "out"))
    return folder, done.content["answers"]


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_threshold_answers_known_people_and_not_unknown_ones(built):
    folder, section = built
    rule, (test, nobody) = section["abstention"], section["verified"]
    assert rule["score"] == "scored_semantic_total" and rule["n"] == 70 and rule["answered"] > 20
    assert (test["set"], test["rows"], test["unanswerable"]["rows"]) == ("test", 70, 20)
    assert test["abstention"]["answered"] > 20 and test["abstention"]["holds"]
    # Another mixture, of thirty: nothing is promised.
    assert nobody["set"] == "nobody" and nobody["unanswerable"]["answered"] < 20
    stored = Posterior.from_pretrained(folder / "posterior").calibration
    assert stored is not None and stored["answers"] == section and "decisions" not in stored


def test_predictions_are_those_of_an_evaluation_with_the_same_settings(built, tmp_path, monkeypatch):
    folder, section = built
    rows = rows_of(folder, "test")[40:60]
    predictor = AnswerPredictor.from_pretrained(folder / "posterior")
    bare = [{"prompt": row["prompt"], "id": f"q{n}"} for n, row in enumerate(rows)]
    found = predictor.predict(bare)
    assert [one.item for one in found] == [f"q{n}" for n in range(20)]
    kept, original = [], collect.Collector.records

    def records(
        self, questions
    ):  # the evaluation draws its answers by the place of a question, the predictor by its text
        made = original(self, questions)
        kept.extend(made)
        return made

    monkeypatch.setattr(collect.Collector, "records", records)
    predictor.predict(bare)
    for one, record in zip(found, kept, strict=True):
        scores = item_scores(record)
        assert one.best == record.answer.text and one.uncertainty == pytest.approx(
            scores["scored_semantic_total"]
        )
        assert one.dont_know == (one.uncertainty > section["abstention"]["threshold"])
        assert one.answer == (None if one.dont_know else one.best)
        assert one.confidence == pytest.approx(confidences(record)["mixture"] ** section["power"])
        assert (
            one.epistemic == pytest.approx(scores["scored_semantic_information"]) and one.entropy is not None
        )
        assert one.epistemic_share == pytest.approx(
            np.clip(one.epistemic / one.entropy, 0, 1) if one.entropy else 0.0
        )
        assert 0 < sum(share for _, share in one.alternatives) <= 1 + 1e-9
    monkeypatch.undo()
    assert {one.dont_know for one in found} == {True, False}
    evaluated = {
        r.question: r
        for r in read_answers(run_generation(settings(folder, tmp_path / "e", p_true=None)) / ANSWERS)
    }
    for row, one in zip(rows, found, strict=True):
        record = evaluated[row["prompt"]]
        assert record.answer.text == one.best
        assert confidences(record)["mixture"] ** section["power"] == pytest.approx(one.confidence, abs=1e-4)


def test_an_answer_does_not_depend_on_the_rows_beside_it(built):
    folder, _ = built
    rows = rows_of(folder, "test")[45:55]
    predictor = AnswerPredictor.from_pretrained(folder / "posterior", batch_size=3)
    whole, alone = predictor.predict(rows), predictor.predict([rows[7]])
    assert alone[0].alternatives == whole[7].alternatives and alone[0].best == whole[7].best
    assert alone[0].uncertainty == pytest.approx(whole[7].uncertainty, abs=1e-5)
    every = predictor.predict(rows, answer_all=True)
    assert all(one.answer == one.best and not one.dont_know for one in every) and predictor.predict([]) == []


def test_a_plain_adapter_and_a_model_without_a_fit(folder, tmp_path, caplog):
    shutil.copytree(folder / "plain", tmp_path / "plain")
    config = settings(
        folder, tmp_path / "o", model=str(tmp_path / "plain"), num_samples=2,
        calibration={"score": "semantic_entropy", "risk": 0.01},
    )  # fmt: skip
    (done,) = run_answer_calibration(config)
    assert done.content["answers"]["abstention"]["threshold"] is None
    assert "no threshold on semantic_entropy could be shown to keep the error rate at 0.01" in caplog.text
    predictor = AnswerPredictor.from_pretrained(tmp_path / "plain")
    rows = rows_of(folder, "test")[:2]
    found = predictor.predict(rows)
    assert all(one.dont_know and one.threshold is None and one.epistemic is None for one in found)
    assert all(one.entropy is not None and len(one.alternatives) for one in found)
    fresh = AnswerPredictor.from_pretrained(folder / "plain", task="closed_world", num_samples=2)
    (first, _) = fresh.predict(rows)
    assert not fresh.calibrated and first.answer == first.best and first.score is None


def test_both_kinds_of_decisions_live_side_by_side_and_go_stale_together(built, tmp_path):
    folder, section = built
    shutil.copytree(folder / "posterior", tmp_path / "p")
    common = {"model": str(tmp_path / "p"), "num_samples": 2, "output": str(tmp_path / "o")}
    rows = [
        {**row, "answer": None if row["response"] is None else row["answer"]}
        for row in rows_of(folder, "test")
    ]
    eval_world.write(tmp_path / "test.jsonl", rows[:10])
    eval_world.write(tmp_path / "validation.jsonl", rows[20:40])
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("test", "validation")}
    data["prompt"] = "prompt"
    rules = {"ladder": [0.5, 1], "refine": 0, "prior_grid": []}
    choices = load_evaluation({**common, "task": "multiple_choice", "data": data, "calibration": rules})
    run_calibration(choices)
    stored = Posterior.from_pretrained(tmp_path / "p").calibration
    assert stored is not None and stored["answers"] == section and "decisions" in stored
    told = CliRunner().invoke(app, ["predict", str(tmp_path / "p"), "--text", "x"])
    assert told.exit_code == 1 and "say which is meant by --task" in " ".join(told.stderr.split())
    one = CliRunner().invoke(
        app, ["predict", str(tmp_path / "p"), "--text", rows[0]["prompt"], "--task", "closed_world"]
    )
    assert one.exit_code == 0, one.stderr
    assert {"answer", "confidence", "epistemic_share", "dont_know"} <= set(json.loads(one.stdout))
    changed = Posterior.from_pretrained(tmp_path / "p").scaled(2.0)
    changed.save_pretrained(tmp_path / "q")
    shutil.copy(tmp_path / "p/calibration.json", tmp_path / "q/calibration.json")
    with pytest.raises(PosteriorFormatError, match="fitted for another posterior"):
        AnswerPredictor.from_pretrained(tmp_path / "q")
    run_calibration(load_evaluation({**common, "model": str(tmp_path / "q"), "task": "multiple_choice", "data": data,
                                     "calibration": rules}))  # fmt: skip
    again = Posterior.from_pretrained(tmp_path / "q").calibration
    assert again is not None and "answers" not in again  # it was another posterior's


def test_a_killed_calibration_goes_on(folder, tmp_path, monkeypatch, caplog):
    shutil.copytree(folder / "posterior", tmp_path / "p")
    config = settings(folder, tmp_path / "o", model=str(tmp_path / "p"), batch_size=60, num_samples=2)
    answered, original = [], collect.Collector.records

    def records(self, questions):
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(len(questions))
        return original(self, questions)

    monkeypatch.setattr(collect.Collector, "records", records)
    with pytest.raises(KeyboardInterrupt):
        run_answer_calibration(config)
    before = (
        (tmp_path / "p/calibration.json").read_text() if (tmp_path / "p/calibration.json").exists() else None
    )
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        (done,) = run_answer_calibration(config)
    assert "continuing: p 120 of 240 answers were there" in caplog.text
    assert done.path.read_text() != before and not (tmp_path / "o.calibrate.work").exists()
    assert not (tmp_path / "o").exists()


def test_bad_input_is_one_line(built, tmp_path):
    folder, _ = built
    data = settings(folder, tmp_path).data

    def refused(match, error=ConfigError, **changes):
        with pytest.raises(error, match=match):
            run_answer_calibration(settings(folder, tmp_path / "o", **changes))

    test = {"test": data.test}
    refused("data.validation is needed", data=test)
    refused("all 70 test questions are among the validation", data={**test, "validation": data.test})
    refused("is not a folder on this machine|no model of this configuration is an adapter", model="base",
            base_model=str(model_folder()))  # fmt: skip
    refused("calibration.score must be one of max_probability", calibration={"score": "entropy"})
    refused("calibration.risk must lie between 0 and 1", calibration={"risk": 0})
    eval_world.write(tmp_path / "one.jsonl", rows_of(folder, "validation")[:1])
    refused(
        "1 validation questions cannot be shared",
        DataError,
        data={**test, "validation": str(tmp_path / "one.jsonl")},
    )
    adapter = str(folder / "posterior")
    with pytest.raises(ConfigError, match="num_samples is 8 but the calibration was fitted with 4"):
        AnswerPredictor.from_pretrained(adapter, num_samples=8)
    with pytest.raises(ConfigError, match="dtype is fixed by the calibration"):
        AnswerPredictor.from_pretrained(adapter, dtype="bfloat16")
    with pytest.raises(
        ConfigError, match="task is simpleqa but the answers were calibrated with closed_world"
    ):
        AnswerPredictor.from_pretrained(adapter, task="simpleqa")
    with pytest.raises(ConfigError, match="task arc_easy has choices; answers are judged for"):
        AnswerPredictor.from_pretrained(adapter, task="arc_easy")
    with pytest.raises(ConfigError, match="name a task file of open questions"):
        AnswerPredictor.from_pretrained(folder / "plain")
    with pytest.raises(DataError, match="data row 0: no column 'prompt'"):
        AnswerPredictor.from_pretrained(adapter).predict([{"question": "x"}])
    command = ["predict", adapter, "--text", "x"]
    for extra, said in (
        (["--alpha", "0.1"], "--alpha is for classes and choices"),
        (["--predictor", "mean"], "--predictor is for classes and choices"),
        (["--choice", "a"], "--choice goes with tasks of choices"),
    ):
        done = CliRunner().invoke(app, [*command, *extra])
        assert done.exit_code == 1 and said in " ".join(done.stderr.split())
    content = json.loads((folder / "posterior/calibration.json").read_text())
    content["answers"]["settings"]["sampling"]["num_answer"] = 1
    shutil.copytree(folder / "posterior", tmp_path / "damaged")
    (tmp_path / "damaged/calibration.json").write_text(json.dumps(content))
    with pytest.raises(
        PosteriorFormatError, match="section 'answers' is damaged or of another version .*num_answer"
    ):
        AnswerPredictor.from_pretrained(tmp_path / "damaged")
