"""Parts of the report: what is marked as best, forest positions, groups, number formats, and the drawings."""

import math
import re

import pytest
from report_fixture import SEEN, UNSEEN, check, entry, make_results

from vlora.eval.metric_names import metric
from vlora.eval.plots import Curve, PointSet, entropy_scatter, reliability_diagram, risk_coverage
from vlora.eval.report import render_report
from vlora.eval.report_all import all_detection
from vlora.eval.report_figures import figure_blocks
from vlora.eval.report_format import amount, cell, number
from vlora.eval.report_pairs import best_keys, detection_table, forest_table
from vlora.eval.report_tables import group_names, main_table


def test_only_a_model_that_beats_every_other_is_marked() -> None:
    results = make_results({"a": "adapter", "b": "adapter", "c": "adapter"})
    results["comparisons"] = [
        {"a": "a", "b": "b", "predictor": "mean", "group": "all", "metric": "nll", "difference": entry(0.1)},
        {"a": "b", "b": "c", "predictor": "mean", "group": "all", "metric": "nll", "difference": entry(-0.1)},
        {
            "a": "a",
            "b": "b",
            "predictor": "mean",
            "group": "all",
            "metric": "accuracy",
            "difference": entry(0.02),
        },
        {
            "a": "a",
            "b": "c",
            "predictor": "mean",
            "group": "base",
            "metric": "accuracy",
            "difference": entry(0.9),
        },
    ]
    assert best_keys(results) == {("b", "mean", "nll")}  # lower NLL than a and than c
    table = main_table(results, best_keys(results))
    marked = [
        (b["model"], line["label"], of.key)
        for b in table["blocks"]
        for line in b["lines"]
        for of, c in zip(table["columns"], line["cells"], strict=True)
        if c.best
    ]
    assert marked == [("b", "mean", "nll")]
    rival = next(
        r
        for r in results["rows"]
        if (r["model"], r["predictor"], r["group"]) == ("c", "mean+temperature", "all")
    )
    before = rival["metrics"]["nll"]["value"]
    rival["metrics"]["nll"]["value"] = before - 0.01  # a better value elsewhere in the column: no mark
    assert best_keys(results) == set()
    rival["metrics"]["nll"]["value"] = before
    results["comparisons"].pop(0)
    assert best_keys(results) == set()
    assert "No value is marked as best" in render_report(results)


def test_forest_positions_and_verdicts() -> None:
    results = make_results({"a": "adapter", "b": "adapter"})
    results["comparisons"] = [
        {
            "a": "a",
            "b": "b",
            "predictor": "mean",
            "group": "all",
            "metric": "nll",
            "difference": entry(-0.2, 0.05),
        },
        {
            "a": "a",
            "b": "b",
            "predictor": "mean",
            "group": "base",
            "metric": "nll",
            "difference": entry(0.01, 0.05),
        },
    ]
    first, second = (row["cells"][0] for row in forest_table(results["comparisons"])["rows"])
    assert (first["verdict"], second["verdict"]) == ("better", "open")  # less NLL: a is better
    assert first["left"] == 50 - 46
    assert first["at"] == pytest.approx(50 - 46 * 0.2 / 0.25)
    assert second["right"] == pytest.approx(50 + 46 * 0.06 / 0.25)
    assert forest_table(results["comparisons"], limit=1)["left_out"] == 1


def test_groups_are_split_by_whether_they_have_answers() -> None:
    assert group_names(make_results()) == (list(SEEN), [], list(UNSEEN))


def test_numbers() -> None:
    assert number(None) == "–"
    assert number(-0.0001) == "0.000"
    assert number(-0.25, 2) == "−0.25"
    assert number(0.9123, 1, True) == "91.2\u202f%"
    assert cell({"value": 0.5, "low": 0.4, "high": 0.6}, metric("accuracy")).interval == "[40.0, 60.0]"
    assert cell({"value": math.nan, "low": math.nan, "high": 1.0}, metric("nll")).text == "–"
    assert [amount("seconds", 83.2), amount("seconds", 3725), amount("peak_memory_bytes", 2**31)] == [
        "83.2 s",
        "1 h 2 min",
        "2.00 GiB",
    ]
    assert amount("forward_tokens", 1234567) == "1\u202f234\u202f567"


def test_plots_hold_no_foreign_reference_and_follow_the_theme() -> None:
    curve = Curve([0.2, 0.8], [0.3, 0.7], low=[0.1, 0.6], high=[0.5, 0.9], counts=[3, 9])
    for svg in (
        reliability_diagram([curve, Curve([0.5], [0.5], colour="c1")]),
        risk_coverage([Curve([0.1, 1.0], [0.0, 0.3], dashed=True)], [curve], top=0.4),
        entropy_scatter(
            [PointSet([0.1, 1.0], [0.0, 0.3]), PointSet([2.0], [1.0], slot=13, hollow=True)],
            right=2.0,
            top=1.0,
        ),
        entropy_scatter([], right=0.05, top=0.05),
    ):
        check(svg)
        assert svg.startswith("<svg") and svg.endswith("</svg>")
        assert not re.search(r"#fe[0-9a-f]{4}|http|<style|font-family|xmlns|<metadata", svg)
        assert "var(--ink)" in svg or "var(--muted)" in svg


def test_thresholds_of_the_validation_rows_are_marked_on_the_curves() -> None:
    curve = {"model": "m", "predictor": "mean", "group": "all", "coverage": [0.5, 1.0], "risk": [0.0, 0.3]}
    results = {"models": [{"name": "m"}], "rows": [], "figures": {"risk_coverage": [curve]}}
    rule = {"coverage": 0.5, "risk": 0.0, "promised": 0.05}
    promise = {"model": "m", "predictor": "mean", "set": "test", "abstention": rule}
    (panel,) = figure_blocks({**results, "promises": [promise]})["risk_coverage"]["panels"]
    assert "threshold: 0.00 at 0.50" in panel["svg"]
    silent = {**promise, "abstention": {**rule, "coverage": 0.0, "risk": None}}
    for other in ({}, {"promises": [silent]}, {"promises": [{**promise, "set": "foreign"}]}):
        (panel,) = figure_blocks({**results, **other})["risk_coverage"]["panels"]
        assert "threshold" not in panel["svg"]


def test_tempered_draws_are_a_line_and_nearly_equal_scores_stand_in_the_full_table_alone() -> None:
    results = make_results({"a": "adapter", "b": "posterior"})
    lines = {
        block["model"]: [line["label"] for line in block["lines"]] for block in main_table(results)["blocks"]
    }
    assert lines["b"][-2:] == ["samples + temperature", "tempered samples"]
    assert "tempered samples" not in lines["a"]
    assert "divergence between draws" not in {head["score"] for head in detection_table(results)["columns"]}
    assert "divergence between draws" in {row["score"] for row in all_detection(results)}
    for row in results["rows"]:  # results of an earlier version have neither
        row["metrics"].pop("expected_pairwise_kl", None)
    results["rows"] = [row for row in results["rows"] if "draw_temperature" not in row["predictor"]]
    check(render_report(results))
