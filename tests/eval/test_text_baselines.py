"""Baselines of texts: a temperature fitted on other texts, the ensemble of whole texts, lengths, and what is absent."""

import json
from dataclasses import replace

import eval_world
import numpy as np
import pytest
import torch

from vlora.errors import DataError, PosteriorFormatError
from vlora.eval.baselines import absent_notes
from vlora.eval.calibrate import run_calibration
from vlora.eval.ensemble import ensemble_records
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.temperature import temperature_from_grid
from vlora.eval.prepare import prepare
from vlora.eval.records import Record, TokenScores, read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.eval.text_temperature import TOKEN_TEMPERATURES
from vlora.eval.token_stream import TokenStream
from vlora.posterior import Posterior
from vlora.posterior.calibration import token_temperatures_of
from vlora.recipes.evaluate import evaluate


def texts(step: int, count: int) -> list[dict]:
    return [
        {"text": " ".join(f"w{(i * j * step + step) % 40}" for j in range(3 + (i + step) % 5))}
        for i in range(count)
    ]


def config(world, output, **changes):
    data = {
        "test": eval_world.write(output.with_name(output.name + "_t.jsonl"), texts(1, 12)),
        "validation": eval_world.write(output.with_name(output.name + "_v.jsonl"), texts(3, 10)),
        "ood": {"odd": eval_world.write(output.with_name(output.name + "_o.jsonl"), texts(7, 8))},
    }
    return eval_world.config(
        world, output, **{"task": "causal_lm", "ensemble": "auto", "data": data, **changes}
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return eval_world.build(tmp_path_factory.mktemp("text_baselines"))


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    output = evaluate(config(world, tmp_path_factory.mktemp("run") / "lm"))
    return output, read_results(output / "results.json"), read_records(output / "records.jsonl")


def row_of(results, model, predictor):
    [row] = [
        r for r in results["rows"] if (r["model"], r["predictor"], r["group"]) == (model, predictor, "all")
    ]
    return row["metrics"]


def test_a_temperature_is_that_of_the_logits():
    logits = 2 * torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    target, counts = torch.arange(7), [3, 4]
    stream = TokenStream(target, counts, (0.5, 2.0), {"mean": 2.0, "samples": 0.5})
    stream.add_all([None, 0, 1], logits)
    first = stream.records()[0]
    tempered = (logits[0, :3].double() / 2).log_softmax(-1)
    realised = tempered[range(3), range(3)]
    assert first["temperature"] == 2.0 and first["sample_temperature"] == 0.5
    assert first["nll_chosen"] == pytest.approx(-realised.sum().item(), abs=1e-5) == first["nll_tempered"][1]
    assert first["confidence_chosen"] == pytest.approx(tempered.exp().max(-1).values.tolist(), abs=1e-5)
    assert first["entropy_chosen"] == pytest.approx((-(tempered.exp() * tempered).sum(-1)).tolist(), abs=1e-5)
    mixture = logits[1:, :3].double().softmax(-1).mean(0).log()
    sharp = (mixture / 0.5).log_softmax(-1)
    assert first["nll_samples_chosen"] == pytest.approx(-sharp[range(3), range(3)].sum().item(), abs=1e-5)
    assert first["nll_samples_chosen"] == pytest.approx(first["nll_samples_tempered"][0])
    assert first["sample_entropy_chosen"] == pytest.approx(
        (-(sharp.exp() * sharp).sum(-1)).tolist(), abs=1e-5
    )


def test_what_is_kept_of_every_draw_is_literal():
    logits = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(1)).double()
    stream = TokenStream(torch.arange(5), [2, 3])
    stream.add_all([0, 1, 2, 3], logits)
    second, p = stream.records()[1], logits[:, 2:].softmax(-1)
    own = p[:, range(3), range(2, 5)]
    assert second["nll_by_draw"] == pytest.approx((-own.log().sum(1)).tolist(), abs=1e-4)
    assert second["entropy_by_draw"] == pytest.approx((-(p * p.log()).sum((1, 2))).tolist(), abs=1e-4)
    assert second["weight_by_draw"] == pytest.approx((own / own.mean(0)).sum(1).tolist(), abs=1e-4)
    assert np.mean(second["weight_by_draw"]) == pytest.approx(3, abs=1e-4)
    assert "temperatures" not in second and "nll_chosen" not in second


def test_the_temperature_comes_from_the_validation_texts_alone(run, world, tmp_path):
    _, results, records = run
    own = [r for r in records if r.model == "first"]
    held_out, test = ([r.lm for r in own if r.split == split] for split in ("validation", "test"))
    for predictor, grid, field, nll in (
        ("mean", "nll_tempered", "temperature", "nll_chosen"),
        ("samples", "nll_samples_tempered", "sample_temperature", "nll_samples_chosen"),
    ):
        tokens = sum(text.num_tokens for text in held_out)
        fitted = temperature_from_grid(
            TOKEN_TEMPERATURES, sum(getattr(text, grid) for text in held_out) / tokens
        )
        found = row_of(results, "first", f"{predictor}+temperature")
        assert found["temperature"]["value"] == pytest.approx(fitted.temperature, rel=1e-5)
        assert {getattr(text, field) for text in test} == {found["temperature"]["value"]}
        assert all(getattr(text, grid) is None for text in test) and all(
            getattr(t, field) is None for t in held_out
        )
        value = sum(getattr(text, nll) for text in test) / sum(text.num_tokens for text in test)
        assert found["nll"]["value"] == pytest.approx(value) and found["perplexity"][
            "value"
        ] == pytest.approx(np.exp(value))
        assert found["accuracy"]["value"] == row_of(results, "first", predictor)["accuracy"]["value"]
        assert found["nll"]["value"] < row_of(results, "first", predictor)["nll"]["value"]
        assert found["temperature"]["low"] <= found["temperature"]["value"] <= found["temperature"]["high"]
    other = config(world, tmp_path / "other", model=str(world / "first"))
    fewer = replace(
        other, data=replace(other.data, test=eval_world.write(tmp_path / "few.jsonl", texts(5, 3)))
    )
    again = read_results(run_eval(fewer) / "results.json")
    same = "mean+temperature"
    assert (
        row_of(again, "first", same)["temperature"]["value"]
        == row_of(results, "first", same)["temperature"]["value"]
    )


def test_the_store_knows_what_it_was_scored_at(world, tmp_path, monkeypatch):
    first = config(world, tmp_path / "a", model=str(world / "first"), store=str(tmp_path / "store"))
    results = read_results(run_eval(first) / "results.json")
    monkeypatch.setattr("vlora.eval.prepare.Host", lambda *_, **__: pytest.fail("a model was loaded"))
    again = read_results(run_eval(replace(first, output=str(tmp_path / "b"))) / "results.json")
    assert again["rows"] == results["rows"]
    monkeypatch.undo()
    alone = replace(first, data=replace(first.data, validation=None), output=str(tmp_path / "c"))
    plain = read_results(run_eval(alone) / "results.json")
    assert {row["predictor"] for row in plain["rows"]} == {"mean", "samples"}
    assert row_of(plain, "first", "mean")["nll"] == row_of(results, "first", "mean")["nll"]
    [entry] = [b for b in plain["baselines"] if b["name"] == "temperature_scaling"]
    assert entry["models"] == [] and "no validation texts" in entry["missing"]["first"]


def test_a_calibrated_adapter_brings_its_temperature(world, tmp_path):
    folder = tmp_path / "adapter"
    Posterior.from_pretrained(str(world / "first")).save_pretrained(folder)
    ladder = {"ladder": [0.5, 1.0], "refine": 0}
    fit = config(world, tmp_path / "fit", model=str(folder), calibration=ladder)
    run_calibration(fit)
    section = json.loads((folder / "calibration.json").read_text())
    alone = replace(fit, data=replace(fit.data, validation=None), output=str(tmp_path / "o"))
    found = read_results(run_eval(alone) / "results.json")
    for predictor in ("mean", "samples"):
        value = row_of(found, "adapter", f"{predictor}+temperature")["temperature"]
        assert value["value"] == pytest.approx(
            section["logit_temperature"][predictor]["temperature"], rel=1e-5
        )
        assert value["low"] is None  # the texts of the fit are not here
    shared = texts(1, 5) + texts(3, 2)  # two of the rows that it was fitted on
    data = replace(alone.data, test=eval_world.write(tmp_path / "shared.jsonl", shared))
    refused = read_results(run_eval(replace(alone, data=data, output=str(tmp_path / "p"))) / "results.json")
    assert {row["predictor"] for row in refused["rows"]} == {"mean", "samples"}
    section["logit_temperature"]["mean"]["temperature"] = -1.0
    (folder / "calibration.json").write_text(json.dumps(section))
    with pytest.raises(
        PosteriorFormatError, match="holds the logit temperature -1.0, expected a positive number"
    ):
        token_temperatures_of(Posterior.from_pretrained(str(folder)))


def member(nll: float, entropy: float, item: str = "test/0") -> Record:
    numbers = np.full(2, entropy)
    lm = TokenScores(num_tokens=2, nll=nll, correct=np.ones(2), confidence=np.ones(2) / 2, entropy=numbers)
    return Record(model="a", item=item, split="test", group="g", num_tokens=3, lm=lm)


def test_an_ensemble_of_texts_is_the_mixture_of_whole_texts():
    (found,) = ensemble_records([[member(1.0, 0.2)], [member(3.0, 0.6)]])
    scores = found.lm
    assert found.model == "ensemble" and scores.correct is None and scores.confidence is None
    assert scores.nll_sequence == pytest.approx(-np.log((np.exp(-1) + np.exp(-3)) / 2)) == scores.nll
    assert scores.nll_expected == 2.0 and scores.nll_by_draw.tolist() == [1.0, 3.0]
    assert scores.expected_entropy == pytest.approx([0.4, 0.4])
    assert Record.from_dict(found.to_dict()).lm.nll_sequence == scores.nll_sequence


def test_an_evaluation_of_texts_has_an_ensemble_with_its_cost(run):
    output, results, records = run
    by_model = {name: [r for r in records if r.model == name] for name in ("first", "adamw", "ensemble")}
    for one, two, both in zip(*by_model.values(), strict=True):
        assert both.lm.nll_sequence == pytest.approx(np.log(2) - np.logaddexp(-one.lm.nll, -two.lm.nll))
    found = row_of(results, "ensemble", "samples")
    test = [r.lm for r in by_model["ensemble"] if r.split == "test"]
    tokens = sum(lm.num_tokens for lm in test)
    assert found["nll_expectation_of_products"]["value"] == pytest.approx(
        sum(lm.nll_sequence for lm in test) / tokens
    )
    assert found["nll_expectation_of_products"]["tokens"] == tokens and "accuracy" not in found
    assert "draw_error" not in found["nll_sequence"]  # its members are given
    pair = [
        c
        for c in results["comparisons"]
        if c["a"] == "ensemble" and c["b"] == "adamw" and c["group"] == "all"
    ]
    assert [(c["metric"], c["predictor_a"], c["predictor_b"]) for c in pair] == [
        ("nll_sequence", "samples", "mean")
    ]
    costs = {(row["model"], row["estimator"]): row for row in results["cost"]["by_estimator"]}
    members = [costs[name, "mean"] for name in ("first", "adamw")]
    assert costs["ensemble", "members"]["passes"] == 2
    assert costs["ensemble", "members"]["tokens"] == sum(row["tokens"] for row in members)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "2 members" in page and "NLL of whole texts" in page


def test_every_baseline_is_listed_or_its_absence_explained(run):
    _, results, _ = run
    entries = {entry["name"]: entry for entry in results["baselines"]}
    assert list(entries) == ["max_probability", "entropy", "temperature_scaling", "length", "ensemble"]
    assert entries["temperature_scaling"]["models"] == ["first", "adamw", "base"]
    assert "mixture of whole texts" in entries["temperature_scaling"]["missing"]["ensemble"]
    assert entries["ensemble"] == {
        "name": "ensemble",
        "where": "rows: model ensemble",
        "models": ["ensemble"],
        "missing": {},
    }
    notes = absent_notes(results)
    assert notes[0].startswith("Not among the baselines: max probability of ensemble: an ensemble of texts")
    detected = {(d["model"], d["score"]) for d in results["detection"]}
    assert {(m, "length") for m in ("first", "adamw", "base", "ensemble")} <= detected
    assert ("first", "answer_length") not in detected  # without prompts it is the same length


def test_scores_and_lengths_select_texts(run, world, tmp_path):
    _, results, records = run
    own = [r for r in records if r.model == "first" and r.split == "test"]
    quality = [r.lm.correct.mean() for r in own]
    by = {(r["model"], r["predictor"], r["score"]): r for r in results["wrong_answers"]}
    entropy = [r.lm.entropy.mean() for r in own]
    assert by["first", "mean", "entropy"]["prr"]["value"] == pytest.approx(
        prediction_rejection_ratio(entropy, quality)
    )
    length = by["first", "mean", "length"]
    assert length["prr"]["value"] == pytest.approx(
        prediction_rejection_ratio([r.num_tokens for r in own], quality)
    )
    assert length["auroc"]["value"] is None and length["auroc_gain"] is None
    assert not any(model == "ensemble" for model, _, _ in by)
    rows = [{"question": f"w{i} w{i + 1}", "response": " ".join(["w1"] * (1 + i % 3))} for i in range(6)]
    data = {
        "test": eval_world.write(tmp_path / "t.jsonl", rows),
        "prompt": "question",
        "response": "response",
    }
    data["ood"] = {"odd": eval_world.write(tmp_path / "o.jsonl", rows[:2])}
    prompted = config(world, tmp_path / "p", model=str(world / "first"), num_samples=0, data=data)
    found = read_results(run_eval(prompted) / "results.json")
    assert {"length", "answer_length"} <= {d["score"] for d in found["detection"]}


def test_one_adapter_has_no_ensemble_and_says_so(world, tmp_path):
    alone = config(world, tmp_path / "one", model=[str(world / "first"), "base"], num_samples=2)
    assert prepare(alone).ensemble == []
    [entry] = [
        b for b in read_results(run_eval(alone) / "results.json")["baselines"] if b["name"] == "ensemble"
    ]
    assert entry["models"] == [] and entry["missing"][""].startswith("1 adapter(s) that are no merges")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": [1.0, 2.0], "nll_tempered": [1.0]}, "one number for every one of its temperatures"),
        ({"nll_tempered": [1.0]}, "one number for every one of its temperatures"),
        ({"nll_by_draw": [1.0, 2.0], "entropy_by_draw": [1.0]}, "one number for every draw"),
        ({"confidence_chosen": [0.5, 1.5]}, "'confidence_chosen' must lie in"),
        ({"correct": None}, "needs 'correct'"),
    ],
)
def test_bad_rows_are_named(changes, message):
    row = member(1.0, 0.2).to_dict()
    with pytest.raises(DataError, match=message):
        Record.from_dict({**row, "lm": {**row["lm"], **changes}})
