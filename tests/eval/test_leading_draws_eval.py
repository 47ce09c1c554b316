"""Draws with the covariance of leading directions in evaluation, calibration, prediction and answers."""

import json
import shutil
from dataclasses import replace

import eval_world
import numpy as np
import pytest
from eval_world import command
from test_linearised_leading import directed

from vlora.config import load_config
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.calibrate import run_calibration
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.predict import AnswerPredictor
from vlora.eval.generation.voices import speakers
from vlora.eval.host import Host
from vlora.eval.metrics.temperature import temper
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.predict import Predictor
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.eval.subjects import load_subjects
from vlora.posterior import Posterior
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.calibration import answer_decisions_of, calibrated, identity
from vlora.posterior.kinds import source_identity
from vlora.recipes.calibrate import calibration_table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RULES = {
    "prior_grid": [0.5, 50.0],
    "alpha": [0.3],
    "risk": 0.9,
    "delta": 0.5,
    "refine": 0,
    "ladder": [0.5, 2.0],
}


def config(folder, output, **changes):
    changes = {"model": str(folder / "first"), "covariance": "leading", "overwrite": True, **changes}
    return eval_world.config(folder, output, calibration=RULES, **changes)


def evaluated(folder, output, **changes):
    run_eval(config(folder, output, **changes))
    return read_records(output / "records.jsonl"), read_results(output / "results.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world whose first posterior has leading directions, before and after a calibration of its draws."""
    folder = eval_world.build(tmp_path_factory.mktemp("draws"))
    posterior = directed(Posterior.from_pretrained(folder / "first"))[0]
    posterior.save_pretrained(folder / "first")
    shutil.copytree(folder / "first", folder / "bare")
    (done,) = run_calibration(config(folder, folder / "c"))
    return folder, done


def test_an_evaluation_scores_these_draws_side_by_side_and_one_by_one(built, tmp_path):
    """Every draw is that of the posterior; the store does not take them for independent ones."""
    folder, _ = built
    settings = {"model": str(folder / "bare"), "store": str(tmp_path / "s")}
    records, results = evaluated(folder, tmp_path / "e", **settings)
    loop, _ = evaluated(folder, tmp_path / "l", model=settings["model"], scoring="loop")
    plain, _ = evaluated(folder, tmp_path / "p", covariance="independent", **settings)
    assert len(list((tmp_path / "s").glob("*.jsonl"))) == 2
    for one, other, without in zip(records, loop, plain, strict=True):
        np.testing.assert_allclose(one.sample_log_probs, other.sample_log_probs, atol=1e-5)
        np.testing.assert_allclose(one.log_probs, without.log_probs, atol=1e-6)
        assert abs(one.sample_log_probs - without.sample_log_probs).max() > 1e-4
    assert results["models"][0]["summary"]["covariance of the draws"] == "leading directions over all tensors"
    said, _ = evaluated(folder, tmp_path / "q", linearised="leading", num_samples=16, **settings)
    summary = read_results(tmp_path / "q/results.json")["models"][0]["summary"]["linearised"]
    assert said[0].linearised_covariance is not None and "correlation" in summary


def test_the_width_is_fitted_for_these_draws_and_for_no_others(built, tmp_path):
    folder, done = built
    section = done.content["posterior_temperature"]
    assert section["covariance"] == "leading" and len(section["directions_sha256"]) == 64
    posterior = Posterior.from_pretrained(folder / "first")
    precision = done.content["linearised_prior"]["leading"]["prior_precision"]
    start = (float(posterior.directions.values[-1]) / (posterior.temperature * precision)) ** 0.5
    tried = dict(section["evaluated"])
    assert sorted(tried) == pytest.approx(sorted([1.0, 0.5 * start, 2 * start]))
    best = section["std_scale"]
    assert tried[best] == min(tried.values())
    drawing = posterior.drawing("leading")
    assert calibrated(drawing).meta.ess == pytest.approx(posterior.meta.ess / best**2)
    assert calibrated(posterior) is posterior  # draws of independent entries have no fit here
    records, results = evaluated(folder, tmp_path / "e", temperature="stored")
    assert results["models"][0]["std_scale"] == best and len(records) == 46
    with pytest.raises(
        ConfigError, match="no fitted width in its calibration.json for draws with covariance: ind"
    ):
        evaluated(folder, tmp_path / "e", covariance="independent", temperature="stored")
    assert f"draws at std x {best:.4g}" in calibration_table([done])
    other = directed(posterior, seed=7)[0].drawing("leading")
    with pytest.raises(
        PosteriorFormatError, match="the width in calibration.json was fitted with other leading"
    ):
        calibrated(other)


def test_predictions_are_those_of_the_draws_that_were_calibrated(built, tmp_path):
    folder, done = built
    decisions = done.content["decisions"]
    assert decisions["predictor"] == "samples" and decisions["covariance"] == "leading"
    predictor = Predictor.from_pretrained(folder / "first", base_model=str(folder / "base"))
    assert predictor.posterior.covariance == "leading"
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    predictions = predictor.predict(rows, answer_all=True)
    records, _ = evaluated(folder, tmp_path / "e", temperature="stored")
    for one, record in zip(predictions, [r for r in records if r.split == "test"], strict=True):
        mixture = mixture_log_probs(record.sample_log_probs[:, None])
        assert one.probabilities == pytest.approx(
            np.exp(temper(mixture, decisions["temperature"]))[0], abs=1e-5
        )
        assert one.epistemic is not None
    with pytest.raises(
        ConfigError, match="covariance is independent but the calibration was fitted with leading"
    ):
        Predictor.from_pretrained(folder / "first", covariance="independent")


def test_they_are_chosen_where_nothing_was_calibrated(built, tmp_path, capsys):
    folder, _ = built
    base = {"base_model": str(folder / "base"), "task": "multiple_choice"}
    rows = [{"question": "Q w1 A", "choices": ["red", "blue"]}]
    one, other = (
        Predictor.from_pretrained(folder / "bare", covariance=name, **base).predict(rows)[0]
        for name in ("leading", None)
    )
    assert one.probabilities != other.probabilities
    with pytest.raises(ConfigError, match="covariance must be independent or leading, got 'all'"):
        Predictor.from_pretrained(folder / "bare", covariance="all", **base)
    assert command("export", folder / "bare", "--out", tmp_path / "x", "--covariance", "leading") == 0
    assert json.loads((tmp_path / "x/draws.json").read_text())["covariance"] == "leading"
    capsys.readouterr()


def test_what_lacks_directions_is_named_before_anything_is_scored(built, tmp_path, capsys):
    folder, _ = built
    lacking = (
        "leading cannot be had for second: the posterior has no leading directions .* vlora posterior or"
    )
    with pytest.raises(ConfigError, match=lacking):
        evaluated(folder, tmp_path / "e", model=str(folder / "second"))
    with pytest.raises(
        ConfigError, match="draws with covariance: leading cannot be had: the posterior has no"
    ):
        Predictor.from_pretrained(folder / "second", covariance="leading", task="multiple_choice")
    assert command("export", folder / "second", "--out", tmp_path / "x", "--covariance", "leading") == 1
    assert "has no leading directions" in capsys.readouterr().err and not (tmp_path / "x").exists()
    records, _ = evaluated(
        folder, tmp_path / "e", model=str(folder / "plain")
    )  # a plain adapter has no draws
    assert records[0].sample_log_probs is None


def test_answers_are_generated_under_them(built, tmp_path):
    """One voice a draw; what was calibrated with them is applied with them."""
    folder, _ = built
    values = {
        "kind": "generation",
        "model": str(folder / "bare"),
        "base_model": str(folder / "base"),
        "task": "nq_open",
    }
    settings = {**values, "num_samples": 2, "output": str(tmp_path / "o")}
    plain, leading = (
        load_config(GenerationConfig, {**settings, "covariance": name}) for name in ("independent", "leading")
    )
    (one,), (other,) = (speakers(load_subjects(c), 2, True) for c in (plain, leading))
    assert one.content() != other.content()
    host = Host(leading, str(folder / "base"), task="causal_lm")
    want = Posterior.from_pretrained(folder / "bare").drawing("leading").sample(1, antithetic=True)
    with other.on(host) as voices, voices.draw(1) as model:
        held = {name: value for name, value in model.named_parameters() if "lora_B" in name}
        name, value = next(iter(held.items()))
        np.testing.assert_array_equal(value.numpy(), want[name.replace(".default", "")].numpy())
    found = AnswerPredictor.from_pretrained(folder / "bare", task="nq_open", covariance="leading")
    assert found._subject.posterior.covariance == "leading" and found.decisions.covariance == "leading"


def test_a_rule_for_answers_is_bound_to_the_directions(built):
    posterior = Posterior.from_pretrained(built[0] / "bare")
    head = {"task_file": "nq_open", "task_sha256": "x", "num_samples": 2, "antithetic": True}
    sha256 = source_identity(posterior, "leading")["directions_sha256"]
    section = AnswerDecisions(**head, covariance="leading", directions_sha256=sha256).to_json()
    content = {"format": 2, "posterior_sha256": identity(posterior), "answers": section}
    assert answer_decisions_of(replace(posterior, calibration=content)).covariance == "leading"
    other = directed(posterior, seed=7)[0]
    with pytest.raises(
        PosteriorFormatError, match="the answers' rule in calibration.json was fitted with other"
    ):
        answer_decisions_of(replace(other, calibration=content))
    del section["covariance"]  # as an older vlora wrote it
    assert AnswerDecisions.from_json(section).covariance == "independent"
    with pytest.raises(PosteriorFormatError, match="covariance must be one of independent, leading, got 'x'"):
        AnswerDecisions.from_json({**section, "covariance": "x"})
