"""The page: well-formed, self-contained, escaped, deterministic, complete with parts missing, written atomically."""

import copy
import json
import math
import os
import re
from typing import Any

import pytest
from report_fixture import check, entry, make_records, make_results

from vlora.errors import DataError, OutputError
from vlora.eval.figure_blocks import MAX_POINTS
from vlora.eval.report import render_report, write_report
from vlora.eval.report_figures import figure_blocks
from vlora.eval.report_format import number
from vlora.eval.report_tables import group_names
from vlora.eval.results import compute_results


def test_page_is_well_formed_self_contained_and_deterministic() -> None:
    results = make_results()
    page = render_report(results)
    assert page == render_report(copy.deepcopy(results))
    parsed = check(page)
    assert {
        "headline",
        "groups",
        "detection",
        "scores",
        "comparisons",
        "figures",
        "mistakes",
        "models",
    } <= set(parsed.ids)
    assert page.count('<svg class="plot"') == 5 + 5 + 5 + 3
    assert "—" not in page


def test_text_from_data_is_escaped_everywhere() -> None:
    evil = "<script>alert('x')</script> $\\frac{1}$ & \"q\""
    results = make_results({evil: "posterior", "b": "adapter"}, points=5)
    results["figures"]["mistakes"][0] |= {"text": evil, "choices": [evil, evil], "item": evil, "group": evil}
    results["settings"] = {evil: evil}
    results["models"][0]["sources"] = [{"path": evil, "weight": 1.0}]
    results["models"][0]["summary"] = {evil: evil}
    results["detection"][0]["name"] = evil
    results["cost"] = {evil: evil}
    results["rows"].append({"model": evil, "predictor": evil, "group": evil, "metrics": {evil: entry(1.0)}})
    page = render_report(results, title=evil)
    assert "<script" not in check(page).tags
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_ten_models_stay_below_a_megabyte_and_a_half() -> None:
    names = {f"ivon-{'ab'[i % 2]}-{i}": "posterior" for i in range(10)}
    results = make_results(names, points=400)
    page = render_report(results)
    check(page)
    assert len(page.encode()) < 1_500_000
    results["figures"] = {
        "entropy_mi": [e for e in results["figures"]["entropy_mi"] if e["model"] == "ivon-a-0"]
    }
    dots = re.findall(r"<use ", figure_blocks(results)["entropy_mi"]["panels"][0]["svg"])
    assert MAX_POINTS - 60 <= len(dots) <= MAX_POINTS + 40


def test_missing_numbers_are_dashes() -> None:
    results = make_results()
    for row in results["rows"]:
        for found in row["metrics"].values():
            if found and row["predictor"] == "samples":
                found |= {"value": math.nan, "low": None, "high": math.inf}
    for found in results["detection"]:
        found["auroc"] = entry(None)
    del results["figures"]
    page = render_report(results)
    check(page)
    assert '<span class="v">–</span>' in page
    assert not re.search(r"\b(None|nan|inf)\b", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


@pytest.mark.parametrize(
    "missing", ["rows", "detection", "comparisons", "figures", "models", "cost", "settings", "versions"]
)
@pytest.mark.parametrize("how", ["absent", "empty", "none"])
def test_each_part_may_be_missing(missing: str, how: str) -> None:
    results = make_results({"a": "posterior"}, points=3)
    results["figures"] = {"mistakes": results["figures"]["mistakes"]}
    if how == "absent":
        del results[missing]
    else:
        results[missing] = None if how == "none" else type(results[missing])()
    check(render_report(results))


def test_bare_results_render() -> None:
    page = render_report({"format": 1})
    check(page)
    assert "No model was evaluated." in page


def test_language_model_without_choices() -> None:
    tokens = {
        "nll": entry(1.91, n=5000),
        "perplexity": entry(6.75, n=5000),
        "accuracy": entry(0.55, n=5000),
        "odd_metric": entry(2.0),
    }
    rows = [{"model": "tiny", "predictor": "mean", "group": "all", "metrics": tokens}]
    results = {"format": 1, "task": "causal_lm", "models": [{"name": "tiny", "kind": "base"}], "rows": rows}
    page = render_report(results)
    check(page)
    assert "language modelling" in page
    assert "Perplexity 6.75" in page
    assert "odd metric" in page
    assert 'id="figures"' not in page


def test_headline_says_what_the_floor_says() -> None:
    page = render_report(make_results({"ivon-a": "posterior"}))
    assert (
        "ECE 0.028 [0.016, 0.040] against a floor of 0.031, no more than a calibrated model shows by chance"
        in page
    )
    page = render_report(make_results({"adamw-a": "adapter"}))
    assert "ECE 0.092 [0.080, 0.104] against a floor of 0.031, over-confident" in page
    assert "70.0\u202f% [68.0, 72.0] of 200 items right" in page


def test_results_of_the_metrics_stage_render() -> None:
    records = make_records("plain", 0) + make_records("bayes", 4)
    results = compute_results(records, num_bootstrap=40, created="2026-01-01T00:00:00+00:00")
    page = render_report(json.loads(json.dumps(results)))
    parsed = check(page)
    assert {"groups", "detection", "scores", "comparisons", "figures", "mistakes"} <= set(parsed.ids)
    assert group_names(results) == (["clean"], ["ambiguous"], ["unknown"])
    shown = [re.sub(r"\s+", " ", text) for text in re.findall(r">([^<>]+)<", page)]
    for row in results["rows"]:
        if row["group"] == "all" and row["model"] == "bayes":
            assert number(row["metrics"]["nll"]["value"]) in shown
    assert "Answers where none is right" in page
    assert "samples vs mean" in page  # draws of one model against the mean of the other


def test_infinite_numbers_are_counted_not_hidden() -> None:
    results = make_results({"a": "adapter"})
    for row in results["rows"]:
        if row["group"] == "all":
            row["metrics"]["nll"] = {
                "value": None,
                "low": None,
                "high": None,
                "n": 9,
                "infinite": 2,
                "finite_mean": 0.5,
            }
    page = render_report(results)
    assert "\u221e" in page
    assert "2 infinite, rest 0.500" in page


def test_unknown_format_is_refused() -> None:
    with pytest.raises(DataError, match="expected results of format 1, got format 2"):
        render_report({"format": 2})


def test_write_is_atomic(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "report.html"
    assert write_report(make_results({"a": "adapter"}, points=3), target) == target
    before = target.read_bytes()
    assert before.decode() == render_report(make_results({"a": "adapter"}, points=3))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot write the report to .*No space left on device"):
        write_report(make_results({"b": "adapter"}, points=3), target)
    assert target.read_bytes() == before
    assert os.listdir(target.parent) == ["report.html"]
