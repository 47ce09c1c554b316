"""Both mixtures of the draws are metrics of choices and texts, under their names, and equal for one token."""

import math

import eval_world
import numpy as np
import pytest
from test_results import log_softmax, make_model

from vlora.eval.records import read_records
from vlora.eval.report import render_report
from vlora.eval.results import compute_results, read_results
from vlora.eval.run import run_eval
from vlora.eval.string_mixtures import MIXTURES, mixture_metrics

EP, PE = MIXTURES


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = eval_world.build(tmp_path_factory.mktemp("world"))
    for name, choices in (("short", ["red", "blue"]), ("long", ["red w1", "blue w2 w3"])):
        rows = [{"question": f"w{n} w{n + 1}", "choices": choices, "answer": n % 2} for n in range(8)]
        eval_world.write(folder / f"{name}.jsonl", rows)
    texts = {"one": [f"w{n}" for n in range(8)], "more": [f"w{n} w1 w2 red w4" for n in range(3)]}
    for name, lines in texts.items():
        eval_world.write(folder / f"{name}.jsonl", [{"text": line} for line in lines])
    return folder


def evaluated(world, output, name, **changes):
    """Records of the draws, their metrics and the page's content."""
    changes = {"model": str(world / "first"), "num_bootstrap": 10, "temperature": 3.0, **changes}
    run_eval(eval_world.config(world, output, **changes))
    results = read_results(output / "results.json")
    (metrics,) = (r["metrics"] for r in results["rows"] if (r["predictor"], r["group"]) == ("samples", "all"))
    return read_records(output / "records.jsonl"), metrics, results


@pytest.mark.parametrize("name", ["short", "long"])
def test_choices_have_both_and_one_token_makes_them_equal(world, tmp_path, name):
    data = {"test": str(world / f"{name}.jsonl")}
    records, metrics, results = evaluated(world, tmp_path / "o", name, data=data)
    for mixture in MIXTURES:
        tables = [getattr(record, mixture) for record in records]
        losses = [-table[record.label] for table, record in zip(tables, records, strict=True)]
        right = [table.argmax() == record.label for table, record in zip(tables, records, strict=True)]
        assert metrics[f"nll_{mixture}"]["value"] == pytest.approx(np.mean(losses), abs=1e-9)
        assert metrics[f"accuracy_{mixture}"]["value"] == pytest.approx(np.mean(right))
        assert metrics[f"nll_{mixture}"]["low"] < metrics[f"nll_{mixture}"]["high"]
    gap = abs(metrics[f"nll_{EP}"]["value"] - metrics[f"nll_{PE}"]["value"])
    assert gap < 1e-6 if name == "short" else gap > 1e-4
    page = render_report(results)
    assert "NLL, expectation of products\u00a0↓" in page and "NLL, product of expectations\u00a0↓" in page
    (at_mean,) = (r for r in results["rows"] if (r["predictor"], r["group"]) == ("mean", "all"))
    assert not set(mixture_metrics()) & set(at_mean["metrics"])


@pytest.mark.parametrize("name", ["one", "more"])
def test_texts_have_both_and_one_token_makes_them_equal(world, tmp_path, name):
    data = {"test": str(world / f"{name}.jsonl"), "text": "text", "append_eos": False}
    records, metrics, results = evaluated(world, tmp_path / "o", name, data=data, task="causal_lm")
    tokens = sum(record.lm.num_tokens for record in records)
    assert tokens == (8 if name == "one" else 15)
    for mixture, field in ((EP, "nll_sequence"), (PE, "nll_samples")):
        total = sum(getattr(record.lm, field) for record in records)
        assert metrics[f"nll_{mixture}"]["value"] == pytest.approx(total / tokens, abs=1e-9)
    assert metrics[f"nll_{PE}"] == metrics["nll"] and metrics[f"nll_{EP}"] == metrics["nll_sequence"]
    gap = abs(metrics[f"nll_{EP}"]["value"] - metrics[f"nll_{PE}"]["value"])
    assert gap < 1e-6 if name == "one" else gap > 1e-4
    page = render_report(results)
    assert "NLL, expectation of products\u00a0↓" in page and "NLL, product of expectations\u00a0↓" in page


def test_both_need_labels_and_every_record():
    rows = make_model("m", 0.3)
    rng = np.random.default_rng(0)
    for row in rows:
        row |= {name: log_softmax(rng.normal(size=3)).tolist() for name in MIXTURES}
    impossible = next(row for row in rows if row["group"] == "hard")
    impossible |= {EP: [0.0, None, None], "label": 1}
    metrics = {
        row["group"]: row["metrics"]
        for row in compute_results(rows, num_bootstrap=5)["rows"]
        if row["predictor"] == "samples"
    }
    assert metrics["all"][f"nll_{EP}"]["infinite"] == 1 and metrics["all"][f"nll_{EP}"]["value"] is None
    easy = [-row[PE][row["label"]] for row in rows if row["group"] == "easy"]
    assert metrics["easy"][f"nll_{PE}"]["value"] == pytest.approx(math.fsum(easy) / len(easy))
    assert not set(mixture_metrics()) & set(metrics["unknown"])  # nothing is right there
    del rows[0][PE]
    without = compute_results(rows, num_bootstrap=5)["rows"]
    assert all(f"nll_{PE}" not in row["metrics"] for row in without)
    assert any(f"nll_{EP}" in row["metrics"] for row in without)
