"""Whole evaluations on config-built models and local files: what is written, and that it is right."""

from dataclasses import replace
from pathlib import Path

import eval_tiny
import eval_world
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from vlora.config import load_config
from vlora.errors import DataError
from vlora.eval.config import EvalConfig
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.recipes.evaluate import evaluate


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return eval_world.build(tmp_path_factory.mktemp("world"))


def test_multiple_choice_from_files_to_report(world, tmp_path):
    output = evaluate(eval_world.config(world, tmp_path / "out"))
    assert sorted(path.name for path in output.iterdir()) == [
        "config.yaml",
        "records.jsonl",
        "report.html",
        "results.json",
        "scores",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no work folder stays behind
    records = read_records(output / "records.jsonl")
    assert len(records) == 3 * (24 + 12 + 10)
    assert {(r.split, r.group) for r in records} == {
        ("test", "easy"),
        ("test", "hard"),
        ("validation", "validation"),
        ("ood", "unknown"),
    }
    drawn = [r for r in records if r.model == "first"]
    assert all(r.sample_log_probs.shape == (4, len(r.choices)) and r.antithetic for r in drawn)
    assert all(r.sample_log_probs is None and not r.antithetic for r in records if r.model != "first")
    assert [r.label for r in drawn if r.split == "ood"] == [None] * 10
    results = read_results(output / "results.json")
    assert [(m["name"], m["kind"]) for m in results["models"]] == [
        ("first", "posterior"),
        ("adamw", "adapter"),
        ("base", "base"),
    ]
    assert {row["predictor"] for row in results["rows"] if row["model"] == "first"} == {
        "mean",
        "samples",
        "mean+temperature",
        "samples+temperature",
        "samples+draw_temperature",
    }
    assert any(entry["positive"] == ["unknown"] for entry in results["detection"])
    assert results["models"][0]["temperature"] == pytest.approx(100 * 0.09)
    assert results["cost"]["forward_tokens"] > 0 and results["settings"]["num_samples"] == 4
    assert load_config(EvalConfig, output / "config.yaml") == eval_world.config(world, tmp_path / "out")
    assert "<html" in (output / "report.html").read_text(encoding="utf-8")


def test_adapters_take_turns_on_one_base_without_leaving_traces(world, tmp_path):
    """Scores of a model do not depend on which models came before it, and equal those of a fresh model."""
    together = read_records(run_eval(eval_world.config(world, tmp_path / "a")) / "records.jsonl")
    models = ["base", str(world / "plain"), str(world / "first")]
    apart = read_records(run_eval(eval_world.config(world, tmp_path / "b", model=models)) / "records.jsonl")
    for name, other in (("base", "base"), ("adamw", "plain"), ("first", "first")):
        pairs = zip(
            (r for r in together if r.model == name), (r for r in apart if r.model == other), strict=True
        )
        for left, right in pairs:
            assert left.item == right.item
            np.testing.assert_array_equal(left.log_probs, right.log_probs)
    fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world / "base"), world / "first")
    tokenizer = eval_tiny.tokenizer()
    record = next(r for r in together if r.model == "first" and len(r.choices) == 2)
    with torch.no_grad():
        logits = fresh(**tokenizer(record.text, return_tensors="pt")).logits[0, -1].double()
    wanted = logits[tokenizer.convert_tokens_to_ids(["red", "blue"])].log_softmax(-1)
    np.testing.assert_allclose(record.log_probs, wanted.numpy(), atol=1e-5)


def test_classifier_heads_and_string_labels(tmp_path):
    base = eval_tiny.bert(3)
    folder = eval_tiny.save_base(tmp_path / "base", base)
    for seed, name in enumerate(("x", "y")):
        model, posterior = eval_tiny.adapted(eval_tiny.bert(3, seed=seed + 5), "SEQ_CLS", seed)
        heads = [key for key in posterior.mean if "classifier" in key]
        assert heads and not set(heads) & posterior.hess.keys()
        posterior.save_pretrained(tmp_path / name)
    rng = np.random.default_rng(0)
    rows = [
        {"text": f"w{i} w{i + 1} red", "label": ["neg", "neutral", "pos"][int(rng.integers(0, 3))]}
        for i in range(30)
    ]
    config = {
        "model": [str(tmp_path / "x"), str(tmp_path / "y")],
        "base_model": folder,
        "task": "sequence_classification",
        "data": {
            "test": eval_world.write(tmp_path / "test.jsonl", rows),
            "labels": ["neg", "neutral", "pos"],
        },
        "num_samples": 2,
        "num_bootstrap": 20,
        "output": str(tmp_path / "out"),
    }
    records = read_records(run_eval(load_config(EvalConfig, config)) / "records.jsonl")
    assert records[0].choices == ("neg", "neutral", "pos")
    assert [r.label for r in records[:30]] == [("neg", "neutral", "pos").index(row["label"]) for row in rows]
    from transformers import AutoModelForSequenceClassification

    for name in ("x", "y"):  # each adapter brings its own head; the second must not see the first one's
        fresh = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
        fresh = PeftModel.from_pretrained(fresh, tmp_path / name).eval()
        ids = torch.tensor([eval_tiny.tokenizer()(rows[4]["text"])["input_ids"]])
        with torch.no_grad():
            wanted = fresh(ids).logits[0].double().log_softmax(-1).numpy()
        record = next(r for r in records if r.model == name and r.item == "test/4")
        np.testing.assert_allclose(record.log_probs, wanted, atol=1e-5)
    config["data"] = {**config["data"], "labels": ["neg", "pos"]}
    with pytest.raises(DataError, match="head has 3 classes but the data name 2"):
        run_eval(load_config(EvalConfig, {**config, "output": str(tmp_path / "out2")}))


def test_language_modelling_from_files_to_report(world, tmp_path):
    rows = [{"text": " ".join(f"w{(i * j) % 40}" for j in range(3 + i % 5))} for i in range(12)]
    config = eval_world.config(
        world,
        tmp_path / "lm",
        task="causal_lm",
        model=[str(world / "first"), "base"],
        data={"test": eval_world.write(tmp_path / "t.jsonl", rows)},
    )
    output = evaluate(config)
    records = read_records(output / "records.jsonl")
    assert [r.lm.num_tokens for r in records[:3]] == [4, 5, 6]  # the words and EOS; BOS is given
    assert records[0].lm.total_entropy.shape == (4,) and records[-1].lm.total_entropy is None
    assert all((r.lm.total_entropy >= r.lm.expected_entropy - 1e-6).all() for r in records[:12])
    assert {row["predictor"] for row in read_results(output / "results.json")["rows"]} == {"mean", "samples"}


def test_temperature_narrows_the_draws_and_leaves_the_mean(world, tmp_path):
    spread, means = {}, {}
    for temperature in (None, 0.09):  # as trained 100 * .3 ** 2 = 9, so the deviation shrinks to a tenth
        config = eval_world.config(
            world, tmp_path / f"t{temperature}", model=str(world / "first"), temperature=temperature
        )
        output = run_eval(config)
        records = read_records(output / "records.jsonl")
        spread[temperature] = np.mean([r.sample_log_probs.std(0).mean() for r in records])
        means[temperature] = np.concatenate([r.log_probs for r in records])
    np.testing.assert_array_equal(means[None], means[0.09])
    assert 0.05 < spread[0.09] / spread[None] < 0.2
    assert read_results(output / "results.json")["models"][0]["temperature"] == pytest.approx(0.09)


def test_quantised_base_is_the_same_before_and_after_adapters(world, tmp_path):
    pytest.importorskip("bitsandbytes")
    models = [{"path": "base", "name": "before"}, str(world / "first"), {"path": "base", "name": "after"}]
    config = eval_world.config(world, tmp_path / "out", model=models, quantization="8bit", num_samples=2)
    by_model = {name: [] for name in ("before", "first", "after")}
    for record in read_records(run_eval(config) / "records.jsonl"):
        by_model[record.model].append(record.log_probs)
    for before, after in zip(by_model["before"], by_model["after"], strict=True):
        np.testing.assert_array_equal(before, after)
    assert max(abs(a - b).max() for a, b in zip(by_model["before"], by_model["first"], strict=True)) > 0.1


def test_known_answer_distributions_reach_the_records(world, tmp_path):
    rows = [{**row, "choices": ["red", "blue"], "truth": [0.7, 0.3]} for row in eval_world.questions(6, 3)]
    data = {"test": eval_world.write(tmp_path / "t.jsonl", rows), "label_probs": "truth"}
    config = eval_world.config(world, tmp_path / "out", model="base", data=data)
    records = read_records(run_eval(config) / "records.jsonl")
    assert all(record.label_probs.tolist() == [0.7, 0.3] for record in records)
    rows[2]["truth"] = [0.7, 0.7]
    eval_world.write(tmp_path / "t.jsonl", rows)
    with pytest.raises(
        DataError, match="test/2: 'truth' must hold 2 finite probabilities, one a choice, that sum to 1"
    ):
        run_eval(replace(config, output=str(tmp_path / "out2")))


def test_plain_adapter_is_accepted_with_one_line(world, tmp_path, caplog):
    run_eval(eval_world.config(world, tmp_path / "out", model=str(world / "plain")))
    lines = [record.message for record in caplog.records if record.name.startswith("vlora.eval")]
    assert lines == [f"{world / 'plain'} has no posterior: it is evaluated at its weights, without draws"]
