"""A threshold on information behind a gate, from calibration to answers."""

import json
import shutil

import eval_world
import numpy as np
import pytest

from vlora.errors import ConfigError
from vlora.eval.calibrate import run_calibration
from vlora.eval.metrics.risk_control import threshold_grid
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information
from vlora.eval.predict import Predictor
from vlora.eval.records import read_records
from vlora.eval.run import run_eval
from vlora.recipes.calibrate import calibration_table
from vlora.recipes.inspect import describe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RULES = {"ladder": [0.5, 1], "refine": 0, "prior_grid": [], "alpha": [0.3], "risk": 0.9, "delta": 0.5}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A posterior whose rule compares information, behind a gate on its product with the base model's entropy."""
    folder = eval_world.build(tmp_path_factory.mktemp("gate"))
    rules = {**RULES, "risk": 0.99, "delta": 0.9, "score": "mutual_information"}
    rules["gate"] = {"score": "entropy_times_base", "quantile": 0.6}
    (done,) = run_calibration(
        eval_world.config(folder, folder / "out", model=str(folder / "first"), calibration=rules)
    )
    return folder, done


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_the_fit_is_what_an_evaluation_of_the_same_rows_gives(built, tmp_path):
    """Records of every validation row: grid and gate from the six rows of the width, the threshold on the others."""
    folder, done = built
    section = done.content["decisions"]
    config = eval_world.config(
        folder, tmp_path / "e", model=["base", str(folder / "first")], temperature="stored"
    )
    run_eval(config)
    records = read_records(tmp_path / "e/records.jsonl")
    base = {r.item: r for r in records if r.model == "base"}
    own = {r.item: r for r in records if r.model == "first"}
    kept = set(np.random.default_rng(0).permutation(12).tolist()[:6])
    validation = [r.item for r in records if r.model == "first" and r.split == "validation"]

    def column(items, name):
        found = []
        for item in items:
            samples = own[item].sample_log_probs[:, None]
            at_base = entropy(base[item].log_probs[None])[0]
            value = mutual_information(samples, antithetic=True)[0]
            found.append(value if name == "mi" else entropy(mixture_log_probs(samples))[0] * at_base)
        return np.array(found)

    fit = [item for row, item in enumerate(validation) if row not in kept]
    held = [item for row, item in enumerate(validation) if row in kept]
    gate, rule = section["gate"], section["abstention"]
    assert (
        gate["threshold"] == pytest.approx(np.quantile(column(fit, "product"), 0.6), abs=1e-6)
        and gate["n"] == 6
    )
    assert np.isclose(threshold_grid(column(fit, "mi")), rule["threshold"], atol=1e-7).any()
    passed = column(held, "product") <= gate["threshold"]
    assert (
        rule["n"] == 6
        and rule["answered"] == (passed & (column(held, "mi") <= rule["threshold"] + 1e-7)).sum()
    )
    test = [item for item, r in own.items() if r.split == "test"]
    stopped = (column(test, "product") > gate["threshold"]).sum()
    assert section["verified"][0]["abstention"]["gated"] == stopped


def test_predictions_apply_both_and_say_why(built, capsys):
    folder, done = built
    section = done.content["decisions"]
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    for name, entry in zip(("test", "unknown"), section["verified"], strict=True):
        predictions = predictor.predict(rows_of(folder, name))
        counts = entry["abstention"] if name == "test" else entry["unanswerable"]
        assert sum(not one.dont_know for one in predictions) == counts["answered"]
        by_gate = [one for one in predictions if one.reason and "above the gate at" in one.reason]
        assert len(by_gate) == counts["gated"] > 0 and all(
            one.reason.startswith("entropy_times_base") for one in by_gate
        )
        assert all((one.reason is None) != one.dont_know for one in predictions)
        silent = [one for one in predictions if one.dont_know and one not in by_gate]
        assert all(
            "mutual_information" in one.reason and "above the threshold" in one.reason for one in silent
        )
    told = predictor.predict(rows_of(folder, "unknown"), answer_all=True)
    assert not any(one.dont_know for one in told) and any(one.reason for one in told)
    line = ("--text", "Q w3 w4 A", "--choice", "red", "--choice", "blue", "--base-model", folder / "base")
    assert eval_world.command("predict", folder / "first", *line) == 0
    assert "reason" in json.loads(capsys.readouterr().out)
    table, short = calibration_table([done]), describe(str(folder / "first"))["calibration"]
    assert "gate: entropy_times_base up to" in table and "the 60 % quantile of 6 held-out rows" in table
    assert "; the gate stops" in table and "mutual_information: answers up to" in table
    assert short["and entropy_times_base is at most"] == section["gate"]["threshold"]


def test_a_file_of_an_older_vlora_keeps_working(built, tmp_path):
    folder, done = built
    shutil.copytree(folder / "first", tmp_path / "first")
    content = json.loads(json.dumps(done.content))
    section = content["decisions"]
    for name in ("gate", "covariance"):
        del section[name]
    section["abstention"] |= {"score": "max_probability", "threshold": 0.5}
    del content["posterior_temperature"]["covariance"]
    (tmp_path / "first/calibration.json").write_text(json.dumps({**content, "format": 1}))
    predictor = Predictor.from_pretrained(tmp_path / "first", base_model=str(folder / "base"))
    assert predictor.decisions.gate is None and predictor.posterior.meta.ess == pytest.approx(
        Predictor.from_pretrained(folder / "first").posterior.meta.ess
    )
    for one in predictor.predict(rows_of(folder, "test")):
        assert one.dont_know == (one.confidence < 0.5)
        assert (one.reason is None) or one.reason.endswith("is below the threshold at 0.5")


def test_a_plain_adapter_has_no_information(built, tmp_path):
    folder, _ = built
    rules = {**RULES, "score": "mutual_information"}
    config = eval_world.config(folder, tmp_path / "o", model=str(folder / "plain"), calibration=rules)
    with pytest.raises(
        ConfigError, match="the predictor mean with 4 draws has max_probability, entropy, entropy_times"
    ):
        run_calibration(config)
    gate = {"score": "entropy_times_base"}
    config = eval_world.config(
        folder, tmp_path / "o", model=str(folder / "plain"), calibration={**RULES, "gate": gate}
    )
    (done,) = run_calibration(config)
    assert done.content["decisions"]["gate"]["quantile"] == 0.95
