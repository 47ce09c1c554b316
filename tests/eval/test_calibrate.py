"""Fitting a posterior's width on validation rows: the numbers, the file, and applying it in an evaluation."""

import json
import shutil
from dataclasses import replace

import eval_tiny
import eval_world
import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.calibrate import run_calibration
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.temperature import fit_temperature
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.posterior import Posterior
from vlora.posterior.calibration import calibrated, identity

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return eval_world.build(tmp_path_factory.mktemp("calibrate"))


@pytest.fixture
def world(built, tmp_path):
    """A copy of the posterior folder to write into; base and data are shared."""
    shutil.copytree(built / "first", tmp_path / "first")
    return built


def settings(world, tmp_path, **changes):
    changes = {"model": str(tmp_path / "first"), "overwrite": True, **changes}
    changes["calibration"] = {"threshold_share": 0, **changes.get("calibration", {})}  # widths alone
    return eval_world.config(world, tmp_path / changes.pop("name", "out"), **changes)


def validation_records(world, tmp_path, **changes):
    run_eval(settings(world, tmp_path, name="check", **changes))
    records = read_records(tmp_path / "check/records.jsonl")
    return [record for record in records if record.split == "validation"]


def nll_of(records):
    """NLL of the mixture of draws, from the records of an evaluation."""
    values = [
        negative_log_likelihood(mixture_log_probs(r.sample_log_probs[:, None]), [r.label]).mean
        for r in records
    ]
    return float(np.mean(values))


def test_the_file_says_what_an_evaluation_of_the_same_rows_says(world, tmp_path):
    before = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    (done,) = run_calibration(settings(world, tmp_path))
    after = {p.name: p.read_bytes() for p in (tmp_path / "first").iterdir()}
    assert after.keys() - before.keys() == {"calibration.json"}
    assert {name: after[name] for name in before} == before
    width = json.loads((done.path).read_text())["posterior_temperature"]
    assert width["split"]["rows"] == 12 and len(width["evaluated"]) == (7 if width["at_bound"] else 11)
    assert width["nll"]["fitted"] == min(value for _, value in width["evaluated"])
    as_trained = validation_records(world, tmp_path)
    assert nll_of(as_trained) == pytest.approx(width["nll"]["as_trained"], abs=1e-6)
    assert nll_of(validation_records(world, tmp_path, temperature="stored")) == pytest.approx(
        width["nll"]["fitted"], abs=1e-6
    )
    rows, label = np.full((12, 3), -np.inf), [record.label for record in as_trained]
    for row, record in zip(rows, as_trained, strict=True):
        row[: len(record.log_probs)] = record.log_probs
    logit = done.content["logit_temperature"]
    assert logit["mean"]["temperature"] == pytest.approx(fit_temperature(rows, label).temperature, rel=1e-4)
    assert width["nll"]["mean"] == pytest.approx(negative_log_likelihood(rows, label).mean, abs=1e-6)


def test_the_fitted_width_is_applied_and_named(world, tmp_path):
    (done,) = run_calibration(settings(world, tmp_path))
    scale = done.content["posterior_temperature"]["std_scale"]
    stored = Posterior.from_pretrained(tmp_path / "first")
    assert calibrated(stored).meta.ess == pytest.approx(stored.meta.ess / scale**2)
    for temperature in ("stored", "auto"):
        output = run_eval(settings(world, tmp_path, temperature=temperature))
        (model,) = read_results(output / "results.json")["models"]
        assert model["std_scale"] == scale
        assert model["ess"] == pytest.approx(stored.meta.ess / scale**2)
        assert f"std x {scale:.4g}, fitted on 12 held-out rows" in model["summary"]["posterior_temperature"]
    output = run_eval(settings(world, tmp_path))
    assert read_results(output / "results.json")["models"][0]["std_scale"] is None


def test_draws_at_two_widths_use_the_same_noise(world, tmp_path):
    posterior = Posterior.from_pretrained(tmp_path / "first")
    wide = posterior.scaled(3.0)
    for key, mean in posterior.mean.items():
        np.testing.assert_allclose(
            wide.sample(2)[key] - mean, 3 * (posterior.sample(2)[key] - mean), rtol=1e-4, atol=1e-6
        )
    per_key = replace(posterior, meta=replace(posterior.meta, ess=dict.fromkeys(posterior.hess, 40.0)))
    assert set(per_key.scaled(2.0).meta.ess.values()) == {10.0}
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="std_scale must be > 0 and finite"):
            posterior.scaled(scale)


def test_texts_are_calibrated_per_token(built, tmp_path):
    shutil.copytree(built / "first", tmp_path / "first")
    rows = [{"text": " ".join(f"w{(i * k) % 40}" for k in range(4, 9))} for i in range(14)]
    eval_world.write(tmp_path / "test.jsonl", rows[:6])
    eval_world.write(tmp_path / "val.jsonl", rows[6:])
    data = {"test": str(tmp_path / "test.jsonl"), "validation": str(tmp_path / "val.jsonl"), "text": "text"}
    config = settings(
        built, tmp_path, task="causal_lm", data=data, calibration={"ladder": [0.5, 1.0], "refine": 0}
    )
    (done,) = run_calibration(config)
    width = done.content["posterior_temperature"]
    records = validation_records(built, tmp_path, task="causal_lm", data=data)
    tokens = sum(record.lm.num_tokens for record in records)
    assert sum(r.lm.nll_samples for r in records) / tokens == pytest.approx(
        width["nll"]["as_trained"], abs=1e-6
    )
    assert sum(r.lm.nll for r in records) / tokens == pytest.approx(width["nll"]["mean"], abs=1e-6)
    logit = done.content["logit_temperature"]
    assert list(logit) == ["mean", "samples", "samples_fitted"]
    for name, at_one in (("mean", "mean"), ("samples", "as_trained"), ("samples_fitted", "fitted")):
        assert logit[name]["nll"] <= width["nll"][at_one] + 1e-6


def test_only_posteriors_are_calibrated_and_other_sections_stay(world, tmp_path):
    (tmp_path / "first/calibration.json").write_text(
        json.dumps({"format": 1, "abstention": {"threshold": 0.7}})
    )
    config = settings(
        world, tmp_path, model=["base", str(world / "plain"), str(tmp_path / "first")],
        calibration={"ladder": [1, 2], "refine": 0},
    )  # fmt: skip
    (done,) = run_calibration(config)
    content = json.loads((tmp_path / "first/calibration.json").read_text())
    assert done.name == "first" and content["abstention"] == {"threshold": 0.7}
    assert content["posterior_sha256"] == identity(Posterior.from_pretrained(tmp_path / "first"))
    Posterior.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy/calibration.json").read_text()) == content


def test_nobody_is_scored_on_the_rows_of_the_fit(world, tmp_path, caplog):
    same = {"test": str(world / "validation.jsonl"), "validation": str(world / "validation.jsonl")}
    with pytest.raises(ConfigError, match="the calibration was fitted on these very 12 rows"):
        run_calibration(settings(world, tmp_path, data=same))
    run_calibration(settings(world, tmp_path, calibration={"ladder": [1, 2], "refine": 0}))
    lines = (world / "validation.jsonl").read_text().splitlines()
    (tmp_path / "shuffled.jsonl").write_text("\n".join(reversed(lines)))
    with pytest.raises(
        ConfigError, match="posterior temperature of 'first' was fitted on these very 12 rows"
    ):
        run_eval(
            settings(world, tmp_path, data={"test": str(tmp_path / "shuffled.jsonl")}, temperature="stored")
        )
    (tmp_path / "some.jsonl").write_text("\n".join(lines[:5]))
    run_eval(settings(world, tmp_path, data={"test": str(tmp_path / "some.jsonl")}, temperature="stored"))
    assert "5 of the 5 test rows are among those" in caplog.text


def test_a_fit_of_another_posterior_or_none_is_refused(world, tmp_path):
    with pytest.raises(
        ConfigError, match="holds no fitted width in its calibration.json for draws with covariance"
    ):
        run_eval(settings(world, tmp_path, temperature="stored"))
    run_eval(settings(world, tmp_path, temperature="auto"))
    run_calibration(settings(world, tmp_path, calibration={"ladder": [1, 2], "refine": 0}))
    path = tmp_path / "first/calibration.json"
    content = json.loads(path.read_text())
    changed = Posterior.from_pretrained(tmp_path / "first").scaled(2.0)
    changed.save_pretrained(tmp_path / "first")
    with pytest.raises(PosteriorFormatError, match="fitted for another posterior"):
        run_eval(settings(world, tmp_path, temperature="auto"))
    path.write_text(json.dumps({**content, "format": 3}))
    with pytest.raises(PosteriorFormatError, match="format 3, this vlora reads up to 2"):
        run_eval(settings(world, tmp_path, temperature="stored"))
    path.write_text(json.dumps({**content, "posterior_temperature": {"std_scale": -1}}))
    with pytest.raises(PosteriorFormatError, match="std_scale -1, expected a positive number"):
        run_eval(settings(world, tmp_path, temperature="stored"))


def test_bad_settings_are_named(world, tmp_path):
    with pytest.raises(ConfigError, match=r"data.validation is needed"):
        run_calibration(settings(world, tmp_path, data={"test": str(world / "test.jsonl")}))
    with pytest.raises(ConfigError, match="num_samples must be at least 2"):
        run_calibration(settings(world, tmp_path, num_samples=0))
    with pytest.raises(ConfigError, match="no model of this configuration has a posterior"):
        run_calibration(settings(world, tmp_path, model=["base", str(world / "plain")]))
    with pytest.raises(ConfigError, match="two or more positive factors in rising order"):
        settings(world, tmp_path, calibration={"ladder": [2, 1]})
    with pytest.raises(ConfigError, match="calibration.refine must be 0 or more"):
        settings(world, tmp_path, calibration={"refine": -1})
    with pytest.raises(ConfigError, match="temperature"):
        settings(world, tmp_path, temperature="best")


def test_a_killed_write_leaves_the_former_file(world, tmp_path, monkeypatch):
    config = settings(world, tmp_path, calibration={"ladder": [1, 2], "refine": 0})
    run_calibration(config)
    before = (tmp_path / "first/calibration.json").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_calibration(config)
    assert (tmp_path / "first/calibration.json").read_bytes() == before
    assert not list((tmp_path / "first").glob(".calibration*"))


def test_classes_are_calibrated_too(tmp_path):
    base = eval_tiny.save_base(tmp_path / "base", eval_tiny.bert())
    eval_tiny.adapted(AutoModelForSequenceClassification.from_pretrained(base), "SEQ_CLS")[1].save_pretrained(
        tmp_path / "first"
    )
    rows = [{"text": f"w{i} w{(3 * i) % 40}", "label": i % 3} for i in range(20)]
    eval_world.write(tmp_path / "test.jsonl", rows[:8])
    eval_world.write(tmp_path / "val.jsonl", rows[8:])
    data = {"test": str(tmp_path / "test.jsonl"), "validation": str(tmp_path / "val.jsonl")}
    config = eval_world.config(
        tmp_path, tmp_path / "out", model=str(tmp_path / "first"), task="sequence_classification", data=data
    )
    (done,) = run_calibration(config)
    assert set(done.content["logit_temperature"]) == {"mean", "samples", "samples_fitted", "linearised"}


def test_draws_side_by_side_fit_what_the_plain_loop_fits(world, tmp_path):
    fits = {}
    for scoring in ("loop", "batched"):
        (done,) = run_calibration(settings(world, tmp_path, scoring=scoring))
        fits[scoring] = done.content
    slow, fast = (fits[name]["posterior_temperature"] for name in ("loop", "batched"))
    np.testing.assert_allclose(slow["evaluated"], fast["evaluated"], atol=1e-5)
    assert slow["nll"]["mean"] == pytest.approx(fast["nll"]["mean"], abs=1e-5)
    for name, entry in fits["loop"]["logit_temperature"].items():
        assert fits["batched"]["logit_temperature"][name]["nll"] == pytest.approx(entry["nll"], abs=1e-5)
