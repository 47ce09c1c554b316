"""The prior of the linearised predictive: fitted by calibration, applied by evaluation and prediction."""

import json
import shutil
from dataclasses import replace
from functools import partial

import eval_world
import linearised_world
import numpy as np
import pytest
import torch
from linearised_world import GRID, NAME, arrays

from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.linearised_gate import linearised_agreement
from vlora.eval.metrics.linearised import softmax_moments
from vlora.eval.metrics.prior_precision import linearised_nll
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.predict import Predictor
from vlora.eval.report import render_report
from vlora.eval.results import read_results
from vlora.posterior import Posterior
from vlora.posterior.calibration import fitted_prior, under_prior
from vlora.posterior.lora_layout import split_keys
from vlora.recipes.calibrate import calibration_table
from vlora.recipes.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
calibrate = partial(linearised_world.calibrate, predictor="linearised")
evaluated = partial(linearised_world.evaluated, linearised=True)


def gram(size, seed):
    half = torch.randn(size, size + 1, generator=torch.Generator().manual_seed(seed))
    return half @ half.T


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world whose first posterior has Kronecker factors and a fitted prior."""
    folder = eval_world.build(tmp_path_factory.mktemp("prior"))
    posterior = Posterior.from_pretrained(folder / NAME)
    curvature = {}
    for number, keys in enumerate(split_keys(posterior.mean)[0].values()):
        a, b = posterior.mean[keys.a], posterior.mean[keys.b]
        curvature[f"{keys.stem}.input_gram"] = gram(a.shape[1], number)
        curvature[f"{keys.stem}.output_gram"] = gram(len(b), 50 + number)
    replace(posterior, curvature=curvature).save_pretrained(folder / NAME)
    (done,) = calibrate(folder)
    return folder, done


@pytest.mark.parametrize(("linearised", "kind"), [(True, "independent"), ("kronecker", "kronecker")])
def test_the_fit_is_what_evaluations_at_every_prior_say(tmp_path, linearised, kind):
    folder = eval_world.build(tmp_path)
    posterior = Posterior.from_pretrained(folder / NAME)
    curvature = {}
    for number, keys in enumerate(split_keys(posterior.mean)[0].values()):
        curvature[f"{keys.stem}.input_gram"] = gram(posterior.mean[keys.a].shape[1], number)
        curvature[f"{keys.stem}.output_gram"] = gram(len(posterior.mean[keys.b]), 50 + number)
    replace(posterior, curvature=curvature).save_pretrained(folder / NAME)
    (done,) = calibrate(folder, calibration={"threshold_share": 0})
    section = done.content["linearised_prior"]
    tried = dict(section[kind]["evaluated"])
    assert list(tried) == GRID and section[kind]["nll"] == min(tried.values())
    for alpha in (0.5, 50.0):
        records, results = evaluated(folder, tmp_path / "e", linearised=linearised, linearised_prior=alpha)
        held_out = [record for record in records if record.split == "validation"]
        assert linearised_nll(*arrays(held_out)) == pytest.approx(tried[alpha], abs=1e-6)
        assert results["models"][0]["linearised_prior"] == alpha
    best = section[kind]["prior_precision"]
    records, results = evaluated(folder, tmp_path / "e", linearised=linearised)
    log_probs, covariance, label = arrays([record for record in records if record.split == "validation"])
    assert results["models"][0]["linearised_prior"] == best
    said = results["models"][0]["summary"]["linearised_prior"]
    assert said == f"prior precision {best:g} at temperature 1, fitted on 12 held-out rows"
    moments = softmax_moments(log_probs, covariance)
    name = "linearised" if kind == "independent" else kind
    scaled = done.content["logit_temperature"][name]["temperature"]
    assert scaled == pytest.approx(fit_temperature(moments.log_probs, label).temperature, rel=1e-4)


def test_covariances_under_the_prior_are_those_of_that_posterior(built, tmp_path):
    """Literal transcription: J diag(1 / (N h + alpha)) J^T is the covariance of a posterior with these settings."""
    folder, _ = built
    posterior = Posterior.from_pretrained(folder / NAME)
    literal = {key: 1 / (100 * h + 5.0) for key, h in posterior.hess.items()}
    for key, variance in under_prior(posterior, 5.0).precision().items():
        torch.testing.assert_close(1 / variance, literal[key])
    shutil.copytree(folder / NAME, tmp_path / "as")
    (tmp_path / "as/calibration.json").unlink()
    under_prior(Posterior.from_pretrained(tmp_path / "as"), 5.0).save_pretrained(tmp_path / "as")
    records, _ = evaluated(folder, tmp_path / "e", linearised_prior=5.0)
    others, _ = evaluated(folder, tmp_path / "o", model=str(tmp_path / "as"), linearised_prior=None)
    for one, other in zip(records, others, strict=True):
        np.testing.assert_allclose(one.linearised_covariance, other.linearised_covariance, rtol=1e-5)


def test_the_draws_are_compared_at_their_own_width(built, tmp_path):
    """The agreement with the draws is the same with and without a fitted prior, and scores are kept for both."""
    folder, _ = built
    with_prior = evaluated(folder, tmp_path / "e", num_samples=8)[1]["models"][0]
    plain = evaluated(folder, tmp_path / "p", num_samples=8, linearised_prior=None)[1]["models"][0]
    assert with_prior["summary"]["linearised"] == plain["summary"]["linearised"]
    assert plain["linearised_prior"] is None and "linearised_prior" not in plain["summary"]
    assert with_prior["linearised_agreement"] == plain["linearised_agreement"]
    page = render_report(read_results(tmp_path / "e/results.json"))
    assert "prior precision" in page and "held-out rows" in page


def test_kronecker_is_compared_without_its_correlations(built, tmp_path):
    """Draws have independent entries, so how well first order follows them is asked of such."""
    folder, _ = built
    changes = {
        "num_samples": 8,
        "linearised_prior": None,
        "store": str(tmp_path / "store"),
        "num_bootstrap": 10,
    }
    records, results = evaluated(folder, tmp_path / "k", linearised="kronecker", **changes)
    plain, expected = evaluated(folder, tmp_path / "p", **changes)
    agreement = results["models"][0]["linearised_agreement"]
    assert agreement == expected["models"][0]["linearised_agreement"]
    at_width, at_prior = (linearised_agreement(one).to_dict() for one in (plain, records))
    assert agreement == {**at_width, "covariance": "independent"}
    assert at_width != at_prior
    assert not np.allclose(records[0].linearised_covariance, plain[0].linearised_covariance, rtol=0.01)


def test_predictions_are_those_of_an_evaluation(built, tmp_path):
    folder, done = built
    decisions = done.content["decisions"]
    assert decisions["predictor"] == "linearised" and decisions["num_samples"] == 0
    assert "posterior_temperature" not in done.content  # no draws, no width
    predictor = Predictor.from_pretrained(folder / NAME, base_model=str(folder / "base"))
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    predictions = predictor.predict(rows, answer_all=True)
    records, _ = evaluated(folder, tmp_path / "e")
    test = [record for record in records if record.split == "test"]
    log_probs, covariance, _ = arrays(test)
    moments = softmax_moments(log_probs, covariance)
    tempered = np.exp(temper(moments.log_probs, decisions["temperature"]))
    for row, one in enumerate(predictions):
        size = len(test[row].log_probs)
        assert one.probabilities == pytest.approx(tempered[row, :size], abs=1e-5)
        assert one.epistemic == pytest.approx(moments.mutual_information[row], abs=1e-5)
        total = moments.mutual_information[row] + moments.expected_entropy[row]
        assert one.epistemic_share == pytest.approx(moments.mutual_information[row] / total, abs=1e-4)
    table = calibration_table([done])
    best = done.content["linearised_prior"]["independent"]["prior_precision"]
    assert f"linearised, prior precision {best:g}" in table and "linearised, Kronecker factors" in table
    assert "sets and threshold are those of the predictor linearised" in table


def test_a_predictor_without_a_calibration_is_chosen_on_the_command_line(built, tmp_path, capsys):
    folder, _ = built
    shutil.copytree(folder / NAME, tmp_path / "bare")
    (tmp_path / "bare/calibration.json").unlink()
    base = {"base_model": str(folder / "base"), "task": "multiple_choice"}
    rows = [{"question": "Q w1 A", "choices": ["red", "blue"]}]
    found = {
        name: Predictor.from_pretrained(tmp_path / "bare", predictor=name, **base).predict(rows)[0]
        for name in ("samples", "mean", "linearised", "kronecker")
    }
    assert found["mean"].epistemic is None
    assert len({one.probabilities for one in found.values()}) == 4
    assert found["linearised"].epistemic > 0 and found["kronecker"].epistemic > 0
    for source, name, message in (
        (folder / "plain", "linearised", "predictor linearised needs a posterior"),
        (folder / "plain", "samples", "predictor samples needs a posterior"),
        (
            tmp_path / "bare",
            "best",
            "predictor must be one of samples, mean, linearised, kronecker, leading, got best",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Predictor.from_pretrained(source, predictor=name, **base)
    arguments = [str(folder / NAME), "--text", "Q", "--choice", "a", "--choice", "b", "--predictor", "mean"]
    with pytest.raises(SystemExit):
        app(args=["predict", *arguments], prog_name="vlora")
    assert "predictor is mean but the calibration was fitted with linearised" in capsys.readouterr().err


def test_a_fit_of_another_posterior_or_version_is_refused(built, tmp_path):
    folder, done = built
    shutil.copytree(folder / NAME, tmp_path / NAME)
    path, content = tmp_path / NAME / "calibration.json", json.loads(done.path.read_text())

    def refused(message, **changes):
        changed = {**content, **changes}
        path.write_text(json.dumps(changed))
        with pytest.raises(PosteriorFormatError, match=message):
            evaluated(folder, tmp_path / "e", model=str(tmp_path / NAME))

    section = content["linearised_prior"]
    refused("has format 3, this vlora reads up to 2", format=3)
    refused("linearised_prior of format 2, this vlora reads 1", linearised_prior={**section, "format": 2})
    damaged = {**section, "independent": {**section["independent"], "prior_precision": -1}}
    refused("prior_precision -1, expected a positive number", linearised_prior=damaged)
    path.write_text(json.dumps(content))
    posterior = Posterior.from_pretrained(tmp_path / NAME)
    other = replace(posterior, curvature={key: 2 * gram for key, gram in posterior.curvature.items()})
    assert fitted_prior(other, "independent") is not None
    with pytest.raises(PosteriorFormatError, match="fitted with other Kronecker factors"):
        fitted_prior(other, "kronecker")
    posterior.scaled(2.0).save_pretrained(tmp_path / NAME)
    with pytest.raises(PosteriorFormatError, match="fitted for another posterior"):
        evaluated(folder, tmp_path / "e", model=str(tmp_path / NAME))


def test_bad_settings_are_named(built, tmp_path, caplog):
    folder, _ = built
    second = str(folder / "second")
    with pytest.raises(ConfigError, match="linearised_prior is 'stored' but .* holds no prior fitted in its"):
        evaluated(folder, tmp_path / "e", model=second, linearised_prior="stored")
    with pytest.raises(ConfigError, match="linearised_prior must be above 0, got -1"):
        evaluated(folder, tmp_path / "e", linearised_prior=-1)
    for grid in ([1.0], [3.0, 1.0], [0.0, 1.0]):
        with pytest.raises(ConfigError, match="prior_grid must be two or more positive numbers"):
            calibrate(folder, calibration={"prior_grid": grid})
    with pytest.raises(ConfigError, match="predictor: linearised needs the prior that"):
        calibrate(folder, calibration={"prior_grid": []})
    with pytest.raises(
        ConfigError, match="predictor: kronecker cannot be had for second: it has no Kronecker"
    ):
        calibrate(folder, model=second, calibration={"predictor": "kronecker"})
    same = {"test": str(folder / "validation.jsonl")}
    with pytest.raises(ConfigError, match="prior of the linearised 'first' was fitted on these very 12 rows"):
        evaluated(folder, tmp_path / "e", data=same)
    bare = Posterior.from_pretrained(second)
    replace(bare, meta=replace(bare.meta, num_examples=0)).save_pretrained(tmp_path / "unknown")
    with pytest.raises(ConfigError, match="linearised_prior is set but .* records no num_examples"):
        evaluated(folder, tmp_path / "e", model=str(tmp_path / "unknown"), linearised_prior=3.0)
    calibrate(folder, model=str(tmp_path / "unknown"), calibration={"predictor": "mean"})
    assert "linearised_prior" not in json.loads((tmp_path / "unknown/calibration.json").read_text())
