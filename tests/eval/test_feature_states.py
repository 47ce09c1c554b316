"""Distances of hidden states in an evaluation: equal to a plain loop, ranked beside the other scores, opt-in."""

import json

import eval_tiny
import eval_world
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from vlora.config import load_config
from vlora.errors import ConfigError, DataError
from vlora.eval import feature_states
from vlora.eval.config import EvalConfig
from vlora.eval.host import Host
from vlora.eval.metrics.feature_distance import FeatureGaussian
from vlora.eval.records import read_records
from vlora.recipes.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def plain_state(model, text):
    """Mean of the last layer's states, one text at a time."""
    ids = eval_tiny.tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double().mean(0).numpy()


def test_choices_have_the_distance_of_their_prompt(tmp_path):
    world = eval_world.build(tmp_path)
    rows = eval_world.questions(30, 7)
    reference = eval_world.write(tmp_path / "reference.jsonl", rows)
    data = {"test": str(world / "test.jsonl"), "ood": {"unknown": str(world / "unknown.jsonl")}}
    models = [str(world / "first"), str(world / "second")]
    changes = {"model": models, "ensemble": True, "num_samples": 2}
    config = eval_world.config(world, tmp_path / "o", data={**data, "reference": reference}, **changes)
    output = evaluate(config)
    records = [r for r in read_records(output / "records.jsonl") if r.model == "first"]
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    model = PeftModel.from_pretrained(base, world / "first").eval()
    fitted = FeatureGaussian.fit([plain_state(model, row["question"]) for row in rows])
    asked = [
        json.loads(line)
        for name in ("test", "unknown")
        for line in (world / f"{name}.jsonl").read_text().splitlines()
    ]
    expected = fitted.distance([plain_state(model, row["question"]) for row in asked])
    assert [r.feature_distance for r in records] == pytest.approx(expected, rel=1e-3)
    assert all(r.relative_feature_distance is None for r in records)  # choices have no class
    results = json.loads((output / "results.json").read_text())
    scored = {(r["model"], r["predictor"]) for r in results["detection"] if r["score"] == "feature_distance"}
    assert scored == {("first", "mean"), ("second", "mean")}  # an ensemble has no state of its own
    assert any(r["score"] == "feature_distance" for r in results["wrong_answers"])
    (cost,) = (
        row for row in results["cost"]["by_estimator"]
        if (row["model"], row["estimator"]) == ("first", "feature_distance")
    )  # fmt: skip
    assert cost["passes"] == pytest.approx(1 + 30 / 34, abs=1e-3)
    assert "distance of the hidden state" in (output / "report.html").read_text()
    plain = evaluate(eval_world.config(world, tmp_path / "p", data=data, **changes))
    assert "feature_distance" not in (plain / "records.jsonl").read_text()
    with pytest.raises(
        ConfigError, match="data.reference gives a score of classes and choices, not of texts"
    ):
        eval_world.config(world, tmp_path / "q", task="causal_lm", data={**data, "reference": reference})


def test_classes_have_a_mean_each(tmp_path):
    base = tmp_path / "base"
    eval_tiny.bert().save_pretrained(base)
    eval_tiny.tokenizer(bos=False, segments=True).save_pretrained(base)
    _, posterior = eval_tiny.adapted(AutoModelForSequenceClassification.from_pretrained(base), "SEQ_CLS", 1)
    posterior.save_pretrained(tmp_path / "p")
    rng = np.random.default_rng(0)

    def rows(count, low, high):
        words = [" ".join(f"w{i}" for i in rng.integers(low, high, 5)) for _ in range(count)]
        return [{"text": text, "label": n % 3} for n, text in enumerate(words)]

    files = {
        name: rows(*sizes) for name, sizes in {"a": (60, 0, 20), "t": (12, 0, 20), "f": (12, 20, 40)}.items()
    }
    paths = {name: eval_world.write(tmp_path / f"{name}.jsonl", own) for name, own in files.items()}
    values = {
        "model": str(tmp_path / "p"), "base_model": str(base), "task": "sequence_classification", "num_samples": 2,
        "data": {"test": paths["t"], "ood": {"far": paths["f"]}, "reference": paths["a"], "labels": ["0", "1", "2"]},
        "num_bootstrap": 20, "output": str(tmp_path / "o"),
    }  # fmt: skip
    output = evaluate(load_config(EvalConfig, values))
    records = read_records(output / "records.jsonl")
    scores = {
        r["score"]: r["auroc"]["value"]
        for r in json.loads((output / "results.json").read_text())["detection"]
    }
    assert all(r.feature_distance > 0 and r.relative_feature_distance is not None for r in records)
    assert scores["feature_distance"] > 0.7  # other words: another state
    eval_world.write(tmp_path / "gap.jsonl", [*files["a"], {"text": "w1", "label": None}])
    data = {**values["data"], "reference": str(tmp_path / "gap.jsonl")}
    with pytest.raises(DataError, match="1 of 61 rows of data.reference have no class"):
        evaluate(load_config(EvalConfig, {**values, "data": data, "output": str(tmp_path / "g")}))


def test_distances_lie_in_the_store_under_their_reference_rows(tmp_path, monkeypatch):
    """The same run again loads nothing; new items are added; other reference rows or measurements start anew."""
    world = eval_world.build(tmp_path)
    rows = eval_world.questions(30, 7)
    reference = eval_world.write(tmp_path / "reference.jsonl", rows)
    data = {"test": str(world / "test.jsonl"), "reference": reference}
    store = {"model": str(world / "first"), "num_samples": 2, "store": str(tmp_path / "store")}

    def run(name, **changes):
        output = evaluate(eval_world.config(world, tmp_path / name, **{"data": data, **store, **changes}))
        records = read_records(output / "records.jsonl")
        costs = json.loads((output / "results.json").read_text())["cost"]["by_estimator"]
        (cost,) = (row for row in costs if row["estimator"] == "feature_distance")
        return {r.item: r.feature_distance for r in records}, cost

    measured = []
    whole = feature_states.mean_states
    monkeypatch.setattr(
        feature_states,
        "mean_states",
        lambda model, own: measured.append(sum(map(len, own))) or whole(model, own),
    )
    first, paid = run("a")
    assert measured == [30, len(first)]
    with monkeypatch.context() as no_model:
        no_model.setattr(Host, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))
        again, same = run("b", num_bootstrap=11)
    assert again == first and same == paid and measured == [30, len(first)]
    wider, more = run("c", data={**data, "ood": {"unknown": str(world / "unknown.jsonl")}})
    added = len(wider) - len(first)
    assert added > 0 and measured[2:] == [30, added] and wider.items() > first.items()
    assert more["passes"] == pytest.approx(1 + 60 / len(wider), abs=1e-3)
    other = eval_world.write(tmp_path / "other.jsonl", rows[:-1])
    changed, _ = run("d", data={**data, "reference": other})
    assert measured[4:] == [29, len(first)] and changed.keys() == first.keys() and changed != first
    assert run("e")[0] == first and len(measured) == 6
    monkeypatch.setattr(feature_states, "_MEASUREMENT", {**feature_states._MEASUREMENT, "version": 0})
    assert run("f")[0] == first and measured[6:] == [30, len(first)]
