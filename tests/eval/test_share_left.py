"""The share of the prior variance that the data left: in evaluations, as a gate, and in predictions."""

import json
from dataclasses import replace
from functools import partial

import eval_tiny
import eval_world
import linearised_world
import numpy as np
import pytest
import stack_cases
import torch
from linearised_world import NAME
from test_linearised_leading import directed, jacobian, string
from test_scoring_batched import FORMAT, _choices

from vlora.errors import ConfigError, DataError
from vlora.eval.decision_scores import check_scores
from vlora.eval.linearised import Wanted, WantedShare, share_name
from vlora.eval.predict import Predictor
from vlora.eval.predictive import logit_covariances
from vlora.eval.records import Record
from vlora.eval.report import render_report
from vlora.eval.score import build_scorer
from vlora.posterior import Posterior
from vlora.posterior.calibration import under_prior

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
calibrate = partial(linearised_world.calibrate, predictor="leading")
evaluated = partial(linearised_world.evaluated, linearised="leading")
GATE = {"score": "share_left", "quantile": 0.6}


@pytest.mark.parametrize("case", ["llama", "gpt2, biases"])
def test_shares_are_those_of_the_dense_matrices_one_by_one(case):
    """Two and three choices; tr J (F + alpha I)^-1 J^T over tr J J^T / alpha without the shift of all choices."""
    model, posterior = stack_cases.CASES[case]()
    posterior, fisher = directed(posterior)
    alpha = float((fisher @ fisher).trace() / fisher.trace()) / 20
    assert posterior.directions.share_precision == pytest.approx(alpha, rel=1e-5)
    tokenizer, examples = eval_tiny.tokenizer(), _choices()
    assert len({len(example.choices) for example in examples}) > 1
    scorer = build_scorer("multiple_choice", examples, tokenizer, FORMAT, model.config)
    wanted = [Wanted([under_prior(posterior, 9.0)], "leading"), WantedShare([posterior])]
    covariance, found = logit_covariances(scorer, model, wanted)
    (same,) = logit_covariances(scorer, model, [WantedShare([under_prior(posterior, 9.0)])])
    np.testing.assert_allclose(same, found, rtol=1e-5)  # whatever the prior
    np.testing.assert_array_equal(covariance, logit_covariances(scorer, model, wanted[:1])[0])
    inverse = torch.linalg.inv(fisher + alpha * torch.eye(len(fisher)))
    for share, example in zip(found, examples, strict=True):
        outputs = [string(model, tokenizer, example.prompt, choice) for choice in example.choices]
        own = jacobian(model, posterior, outputs)
        own = own - own.mean(0)
        expected = alpha * (own @ inverse @ own.T).trace() / (own @ own.T).trace()
        assert 0 < share < 1 and share == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world whose first posterior has directions and a gate on the share."""
    folder = eval_world.build(tmp_path_factory.mktemp("share"))
    directed(Posterior.from_pretrained(folder / NAME))[0].save_pretrained(folder / NAME)
    (done,) = calibrate(folder, calibration={"gate": GATE, "risk": 0.99, "delta": 0.9})
    return folder, done


def test_an_evaluation_scores_every_item_by_it(built, tmp_path):
    folder, _ = built
    records, results = evaluated(folder, tmp_path / "e", num_samples=2, store=str(tmp_path / "store"))
    shares = np.array([record.share_left for record in records])
    assert ((shares > 0) & (shares < 1)).all()
    directions = Posterior.from_pretrained(folder / NAME).directions
    assert results["models"][0]["share_left_precision"] == directions.share_precision
    rows = [row for row in results["detection"] if row["score"] == "share_left"]
    assert {row["predictor"] for row in rows} == {"linearised"} and rows[0]["auroc"]["value"] is not None
    assert "share_left" in {row["score"] for row in results["wrong_answers"]}
    assert "share of the prior variance left" in render_report(results)
    other = {"linearised_prior": 5.0, "store": str(tmp_path / "store"), "num_samples": 2}
    again, _ = evaluated(folder, tmp_path / "f", **other)  # whatever the prior
    assert [record.share_left for record in again] == shares.tolist()
    plain, _ = evaluated(folder, tmp_path / "g", linearised=True)
    assert all(record.share_left is None for record in plain)
    assert "share_left" not in (tmp_path / "g/records.jsonl").read_text()


def test_a_gate_on_it_is_fitted_and_applied(built, tmp_path):
    folder, done = built
    section = done.content["decisions"]
    gate = section["gate"]
    assert gate["score"] == "share_left" and gate["n"] == 6
    records, _ = evaluated(folder, tmp_path / "e")
    kept = set(np.random.default_rng(0).permutation(12).tolist()[:6])
    validation = [record.share_left for record in records if record.split == "validation"]
    others = [share for row, share in enumerate(validation) if row not in kept]
    assert gate["threshold"] == pytest.approx(np.quantile(others, 0.6), rel=1e-6)
    predictor = Predictor.from_pretrained(folder / NAME, base_model=str(folder / "base"))
    for name, entry in zip(("test", "unknown"), section["verified"], strict=True):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        predictions = predictor.predict(rows)
        split = "test" if name == "test" else "ood"
        shares = [record.share_left for record in records if record.split == split]
        stopped = [share > gate["threshold"] for share in shares]
        counts = entry["abstention"] if name == "test" else entry["unanswerable"]
        assert counts["gated"] == sum(stopped) > 0
        for share, closed, one in zip(shares, stopped, predictions, strict=True):
            why = f"share_left {share:.4g} is above the gate at {gate['threshold']:.4g}"
            assert (one.reason == why and one.dont_know) if closed else one.reason != why


def test_texts_have_none(built, tmp_path):
    folder, _ = built
    texts = {"test": str(folder / "test.jsonl"), "text": "question"}
    records, results = evaluated(folder, tmp_path / "t", task="causal_lm", data=texts)
    assert all(record.lm.nll_variance > 0 and record.share_left is None for record in records)
    assert "share_left_precision" not in results["models"][0]


def test_what_cannot_be_had_is_named(built):
    folder, _ = built
    rules = {"calibration.gate.score": "share_left"}
    posterior = replace(Posterior.from_pretrained(folder / NAME), directions=None)
    with pytest.raises(ConfigError, match="share_left cannot be had: it has no leading directions"):
        WantedShare([posterior]).on(torch.device("cpu"))
    with pytest.raises(ConfigError, match="leading cannot be had for second: it has no leading directions"):
        calibrate(folder, model=str(folder / "second"), calibration={"gate": GATE})
    for predictor in ("samples", "mean", "linearised", "kronecker"):
        with pytest.raises(ConfigError, match=f"share_left cannot be had: the predictor {predictor} with 4"):
            check_scores(rules, predictor, "multiple_choice", 4)
    check_scores(rules, "leading", "multiple_choice", 0)


def test_the_name_in_the_store_tells_directions_apart():
    _, posterior = stack_cases.CASES["llama"]()
    names = {share_name(directed(posterior, seed)[0]) for seed in (0, 1)}
    assert len(names) == 2 and all(name.startswith("linearised_share_") for name in names)


def test_a_record_holds_a_share_or_none():
    row = {"model": "m", "item": "i", "split": "test", "group": "test", "num_tokens": 1, "label": 0}
    row |= {"log_probs": [-0.6931472, -0.6931472], "sample_log_probs": None}
    assert Record.from_dict({**row, "share_left": 0.25}).to_dict()["share_left"] == 0.25
    assert "share_left" not in Record.from_dict(row).to_dict()
    with pytest.raises(DataError, match="'share_left' must lie between 0 and 1, got 1.5"):
        Record.from_dict({**row, "share_left": 1.5})
