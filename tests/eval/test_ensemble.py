"""The ensemble beside several adapters: records from those of its members, when there is one, what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import eval_world
import numpy as np
import pytest
import torch

from vlora.errors import ConfigError
from vlora.eval.ensemble import ensemble_members, ensemble_records
from vlora.eval.records import Record, read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval


def subject(name, sources=(), base=False, weights=""):
    posterior = (
        None
        if base
        else SimpleNamespace(
            meta=SimpleNamespace(sources=list(sources)),
            mean={"w": torch.tensor([float(ord(weights or name[0]))])},
        )
    )
    return SimpleNamespace(name=name, posterior=posterior)


def test_members_are_averaged_as_probabilities():
    shared = {
        "item": "test/0",
        "split": "test",
        "group": "g",
        "num_tokens": 3,
        "label": 0,
        "antithetic": True,
    }
    rows = [
        Record(model=name, log_probs=np.log(p), sample_log_probs=np.log([p, p]), **shared)
        for name, p in (("a", [0.9, 0.1]), ("b", [0.2, 0.8]))
    ]
    (found,) = ensemble_records([[rows[0]], [rows[1]]])
    assert found.model == "ensemble" and found.label == 0 and not found.antithetic
    assert np.exp(found.log_probs) == pytest.approx([0.55, 0.45])
    assert np.exp(found.sample_log_probs) == pytest.approx(np.array([[0.9, 0.1], [0.2, 0.8]]))
    certain = replace(rows[0], log_probs=np.array([0.0, -np.inf]))
    (found,) = ensemble_records([[certain], [rows[1]]])
    assert np.exp(found.log_probs) == pytest.approx([0.6, 0.4])


def test_who_is_in_it():
    models = [subject("base", base=True), subject("a"), subject("b"), subject("merged", sources=["a", "b"])]
    assert ensemble_members(models, "auto") == ["a", "b"]
    assert ensemble_members(models, True) == ["a", "b", "merged"]
    assert ensemble_members(models, False) == [] and ensemble_members(models[:2], "auto") == []
    assert ensemble_members([*models, subject("ensemble")], "auto") == []
    assert ensemble_members([subject("a"), subject("laplace of a", weights="a")], "auto") == []
    for wanted, message in (
        (["a", "c"], "no model 'c'; the models are base, a, b, merged"),
        (["a"], r"at least two different adapters, got \['a'\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            ensemble_members(models, wanted)
    with pytest.raises(ConfigError, match="a model is named 'ensemble'"):
        ensemble_members([*models, subject("ensemble")], True)


def test_an_evaluation_of_several_adapters_has_one(tmp_path):
    world = eval_world.build(tmp_path)
    models = [str(world / "first"), {"path": str(world / "plain"), "name": "adamw"}, "base"]
    changes = {"model": models, "ensemble": "auto", "num_samples": 2, "num_bootstrap": 10}
    output = run_eval(eval_world.config(world, tmp_path / "o", **changes))
    records = read_records(output / "records.jsonl")
    by_model = {name: [r for r in records if r.model == name] for name in ("first", "adamw", "ensemble")}
    for one, two, both in zip(*by_model.values(), strict=True):
        assert np.exp(both.log_probs) == pytest.approx((np.exp(one.log_probs) + np.exp(two.log_probs)) / 2)
    results = read_results(output / "results.json")
    assert results["models"][-1] == {"name": "ensemble", "kind": "ensemble", "members": ["first", "adamw"]}
    baselines = {row["predictor"] for row in results["rows"] if row["model"] == "ensemble"}
    assert {"samples", "samples+temperature"} <= baselines
    scores = {row["score"] for row in results["detection"] if row["model"] == "ensemble"}
    assert {"mutual_information", "length"} <= scores
