"""Calibrated decisions end to end: fitted by ``vlora calibrate``, applied by the Predictor and by ``vlora predict``."""

import json
import re
import shutil
from pathlib import Path

import eval_tiny
import eval_world
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from vlora.errors import ConfigError, DataError, PosteriorFormatError
from vlora.eval.calibrate import run_calibration
from vlora.eval.metrics.temperature import temper
from vlora.eval.metrics.uncertainty import mixture_log_probs, mutual_information
from vlora.eval.predict import Predictor
from vlora.eval.records import read_records
from vlora.eval.run import run_eval
from vlora.posterior import Posterior

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RULES = {"ladder": [0.5, 1], "refine": 0, "alpha": [0.3], "risk": 0.9, "delta": 0.5}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world whose first posterior and plain adapter carry decisions."""
    folder = eval_world.build(tmp_path_factory.mktemp("predict"))
    models = [str(folder / "first"), str(folder / "plain")]
    done = run_calibration(eval_world.config(folder, folder / "out", model=models, calibration=RULES))
    return folder, {one.name: one.content for one in done}


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_both_kinds_of_adapters_carry_verified_decisions(built):
    folder, content = built
    assert set(content) == {"first", "plain"}
    for name, predictor in (("first", "samples"), ("plain", "mean")):
        section = content[name]["decisions"]
        assert section["predictor"] == predictor and section["num_samples"] == (4 if name == "first" else 0)
        assert [entry["set"] for entry in section["verified"]] == ["test", "unknown"]
        assert section["verified"][0]["labelled"] == 24
        assert section["verified"][1]["unanswerable"]["rows"] == 10
        assert {rule["n"] for rule in section["conformal"]} == {6}
        assert Posterior.from_pretrained(folder / name).calibration == content[name]
    assert content["first"]["posterior_temperature"]["split"]["rows"] == 12
    assert content["first"]["posterior_temperature"]["rows"] == 6
    assert "posterior_temperature" not in content["plain"]


def test_predictions_are_those_of_an_evaluation_at_the_stored_width(built, tmp_path):
    folder, content = built
    config = eval_world.config(folder, tmp_path / "e", model=str(folder / "first"), temperature="stored")
    run_eval(config)
    records = [r for r in read_records(tmp_path / "e/records.jsonl") if r.split == "test"]
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    predictions = predictor.predict(rows_of(folder, "test"), answer_all=True)
    temperature = content["first"]["decisions"]["temperature"]
    for record, one in zip(records, predictions, strict=True):
        samples = record.sample_log_probs[:, None]
        mixture = mixture_log_probs(samples)
        assert one.probabilities == pytest.approx(np.exp(temper(mixture, temperature))[0], abs=1e-5)
        assert one.confidence == max(one.probabilities) and one.best == int(np.argmax(one.probabilities))
        assert one.answer == record.choices[one.best] and not one.dont_know
        information = mutual_information(samples, antithetic=True)[0]
        assert one.epistemic == pytest.approx(information, abs=1e-6)
        assert one.epistemic_share == pytest.approx(information / one.entropy, abs=1e-5)
        assert set(one.prediction_set) <= set(record.choices)


def test_decisions_of_a_bare_posterior_as_documented(built, tmp_path, capsys):
    """The two blocks of docs/evaluation.md decide as the Predictor does."""
    folder, content = built
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    part = text[text.index("What `vlora calibrate` fitted, without") :]
    read, apply = [block.partition("```")[0] for block in part.split("```python\n")[1:3]]
    given = {}
    exec(read.replace("out/posterior", str(folder / "first")), given)
    rules = given["rules"]
    line = f"samples 4 {rules.temperature} {rules.abstention.threshold} None"
    assert capsys.readouterr().out.strip() == line

    config = eval_world.config(folder, tmp_path / "e", model=str(folder / "first"), temperature="stored")
    run_eval(config)
    records = [r for r in read_records(tmp_path / "e/records.jsonl") if r.split == "test"]
    scale = content["first"]["posterior_temperature"]["std_scale"]
    assert given["drawn_from"].meta.ess == pytest.approx(given["posterior"].meta.ess / scale**2)
    most = max(record.sample_log_probs.shape[1] for record in records)
    padded = [
        np.pad(r.sample_log_probs, [(0, 0), (0, most - r.sample_log_probs.shape[1])], constant_values=-np.inf)
        for r in records
    ]
    given["samples"] = np.stack(padded, axis=1)
    capsys.readouterr()
    exec(apply.replace('"lac", 0.1', '"lac", 0.3'), given)
    printed = capsys.readouterr().out.splitlines()
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    for record, one, told in zip(records, predictor.predict(rows_of(folder, "test")), printed, strict=True):
        answer, confidence, chosen = re.fullmatch(r"(.*) (\S+) \[(.*)\]", told).groups()
        assert answer == ("don't know" if one.dont_know else str(one.best))
        assert float(confidence) == pytest.approx(one.confidence, abs=1e-4)
        assert {record.choices[int(k)] for k in chosen.split()} == set(one.prediction_set)


def test_a_width_other_than_that_of_training_is_drawn_at(built, tmp_path):
    folder, _ = built
    shutil.copytree(folder / "first", tmp_path / "first")
    path = tmp_path / "first/calibration.json"
    changed = json.loads(path.read_text())
    trained = Posterior.from_pretrained(folder / "first").meta.ess
    for scale in (0.5, 2.0):
        changed["posterior_temperature"]["std_scale"] = scale
        path.write_text(json.dumps(changed))
        predictor = Predictor.from_pretrained(tmp_path / "first", base_model=str(folder / "base"))
        assert predictor.calibrated and predictor.posterior.meta.ess == pytest.approx(trained / scale**2)


def test_the_stored_threshold_silences_and_nothing_is_lost(built, tmp_path):
    folder, content = built
    shutil.copytree(folder / "first", tmp_path / "first")
    path = tmp_path / "first/calibration.json"
    changed = json.loads(path.read_text())
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    sure = sorted(1 - one.confidence for one in predictor.predict(rows_of(folder, "test")))
    changed["decisions"]["abstention"]["threshold"] = (sure[9] + sure[10]) / 2
    path.write_text(json.dumps(changed))
    cautious = Predictor.from_pretrained(tmp_path / "first", base_model=str(folder / "base"))
    predictions = cautious.predict(rows_of(folder, "test"))
    assert len(predictions) == 24 and sum(one.dont_know for one in predictions) == 14
    assert all((one.answer is None) == one.dont_know for one in predictions)
    changed["decisions"]["abstention"]["threshold"] = None
    path.write_text(json.dumps(changed))
    silent = Predictor.from_pretrained(tmp_path / "first", base_model=str(folder / "base"))
    assert all(one.dont_know for one in silent.predict(rows_of(folder, "test")[:3]))


def test_a_calibration_of_other_weights_or_newer_is_refused(built, tmp_path):
    folder, _ = built
    shutil.copytree(folder / "second", tmp_path / "second")
    shutil.copy(folder / "first/calibration.json", tmp_path / "second/calibration.json")
    with pytest.raises(PosteriorFormatError, match="fitted for another posterior"):
        Predictor.from_pretrained(tmp_path / "second", base_model=str(folder / "base"))
    content = json.loads((folder / "first/calibration.json").read_text())
    (tmp_path / "second/calibration.json").write_text(json.dumps({**content, "format": 9}))
    with pytest.raises(PosteriorFormatError, match="has format 9, this vlora reads up to 2"):
        Posterior.from_pretrained(tmp_path / "second")


def test_without_a_calibration_there_are_answers_and_no_sets(built, caplog, capsys, tmp_path):
    folder, _ = built
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "x", "question": "Q w1 A", "choices": ["red", "blue"]}\n\n'
        '{"id": "x", "question": "Q w2 A", "choices": ["red", "blue", "green"], "answer": "nonsense"}\n'
    )
    arguments = (
        "predict",
        folder / "second",
        "--data",
        tmp_path / "rows.jsonl",
        "--base-model",
        folder / "base",
    )
    assert eval_world.command(*arguments, "--task", "multiple_choice", "--num-samples", 2) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["item"] for line in lines] == ["x", "x"] and len(lines[1]["probabilities"]) == 3
    assert all(line["prediction_set"] is None and line["answer"] is not None for line in lines)
    assert "1 ids occur more than once, first 'x'" in caplog.text and "nothing was calibrated" in caplog.text
    assert eval_world.command(*arguments) == 1
    assert (
        "task must be sequence_classification, multiple_choice or the name of a task file"
        in capsys.readouterr().err
    )


def test_texts_are_refused_with_what_there_is_for_them(built, tmp_path):
    folder, content = built
    base = str(folder / "base")
    with pytest.raises(ConfigError, match="not texts .causal_lm.; score given texts with vlora eval"):
        Predictor.from_pretrained(folder / "second", base_model=base, task="causal_lm")
    shutil.copytree(folder / "first", tmp_path / "first")
    alone = json.loads(json.dumps(content["first"]))
    del alone["decisions"]
    alone["posterior_temperature"]["task"] = "causal_lm"
    (tmp_path / "first/calibration.json").write_text(json.dumps(alone))
    with pytest.raises(ConfigError, match="score given texts with vlora eval and task: causal_lm"):
        Predictor.from_pretrained(tmp_path / "first", base_model=base)


def test_the_command_writes_a_file_whole_or_answers_a_text(built, capsys, tmp_path):
    folder, _ = built
    base = ("--base-model", folder / "base")
    assert (
        eval_world.command(
            "predict",
            folder / "first",
            "--data",
            folder / "unknown.jsonl",
            "--out",
            tmp_path / "p.jsonl",
            *base,
        )
        == 0
    )
    assert "wrote" in capsys.readouterr().out
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 10
    text = ("--text", "Q w3 w4 A", "--choice", "red", "--choice", "blue", "--answer-all")
    assert eval_world.command("predict", folder / "first", *text, *base) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["answer"] in ("red", "blue") and set(line["prediction_set"]) <= {"red", "blue"}
    for wrong, message in (
        (("--text", "Q"), "needs at least two --choice"),
        ((), "give either --data FILE.jsonl or --text"),
        (("--data", tmp_path / "none.jsonl"), "is not a file"),
        ((*text, "--alpha", "0.2"), "no lac set was fitted for alpha 0.2; there are 0.3"),
        ((*text, "--num-samples", "2"), "num_samples is 2 but the calibration was fitted with 4"),
    ):
        assert eval_world.command("predict", folder / "first", *wrong, *base) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no row"),
        ("{", "line 1 is not valid JSON"),
        ("[1]\n", "line 1 must be a JSON object, got list"),
    ],
)
def test_bad_files_are_one_line(built, tmp_path, capsys, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    assert eval_world.command("predict", built[0] / "first", "--data", tmp_path / "bad.jsonl") == 1
    assert message in capsys.readouterr().err


def test_a_row_without_its_column_is_named(built):
    folder, _ = built
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    with pytest.raises(DataError, match="data row 1: no column 'question'"):
        predictor.predict([{"question": "Q", "choices": ["red", "blue"]}, {"text": "Q"}])
    assert predictor.predict([]) == []
    with pytest.raises(ConfigError, match="no aps set was fitted for alpha 0.05; there are 0.3"):
        predictor.predict([], alpha=0.05, method="aps")


def test_other_columns_without_a_calibration_have_a_cure(built):
    folder, _ = built
    predictor = Predictor.from_pretrained(
        folder / "second", base_model=str(folder / "base"), task="multiple_choice"
    )
    with pytest.raises(
        DataError, match=r"row 0: no column 'question'; the columns are q; rename .* \(--task mine\.yaml"
    ):
        predictor.predict([{"q": "Q"}])


def test_classification_answers_with_class_names(tmp_path):
    base = eval_tiny.save_base(tmp_path / "base", eval_tiny.bert(3))
    model = AutoModelForSequenceClassification.from_pretrained(base)
    _, posterior = eval_tiny.adapted(model, "SEQ_CLS", 1)
    posterior.save_pretrained(tmp_path / "p")
    rng = np.random.default_rng(0)
    for name in ("test", "validation"):
        rows = [
            {"text": " ".join(f"w{i}" for i in rng.integers(0, 40, 5)), "label": ["x", "y", "z"][i % 3]}
            for i in range(12)
        ]
        eval_world.write(tmp_path / f"{name}.jsonl", rows)
    data = {
        "test": str(tmp_path / "test.jsonl"),
        "validation": str(tmp_path / "validation.jsonl"),
        "labels": ["x", "y", "z"],
    }
    changes = {
        "model": str(tmp_path / "p"),
        "task": "sequence_classification",
        "data": data,
        "calibration": RULES,
    }
    run_calibration(eval_world.config(tmp_path, tmp_path / "out", **changes))
    (one,) = Predictor.from_pretrained(tmp_path / "p", base_model=base).predict(
        [{"text": "w1 w2"}], answer_all=True
    )
    assert one.answer in ("x", "y", "z") and len(one.probabilities) == 3 and one.epistemic is not None
