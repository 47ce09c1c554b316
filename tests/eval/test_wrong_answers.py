"""Finding wrong answers: every score beside the baselines, each against its metric, paired gains, and the report."""

import numpy as np
import pytest
from test_results import arrays, make_model

from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import aurc
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information, variation_ratio
from vlora.eval.predictions import ChoiceTable
from vlora.eval.records import Record
from vlora.eval.report import render_report
from vlora.eval.report_all import wrong_answers
from vlora.eval.results import compute_results
from vlora.eval.tables import Resampler
from vlora.eval.wrong_answers import find_wrong_answers


@pytest.fixture(scope="module")
def records():
    return [*make_model("plain", 2.0, draws=0, seed=1), *make_model("ivon", 0.3, seed=2)]


@pytest.fixture(scope="module")
def results(records):
    return compute_results(records, num_bootstrap=200)


def row(results, model, predictor, score):
    wanted = (model, predictor, score)
    [found] = [r for r in results["wrong_answers"] if (r["model"], r["predictor"], r["score"]) == wanted]
    return found


def test_every_score_and_length_stand_beside_each_other(results):
    found = {}
    for one in results["wrong_answers"]:
        found.setdefault((one["model"], one["predictor"]), []).append(one["score"])
    single = ["max_probability", "entropy", "length"]
    assert found["plain", "mean"] == found["ivon", "mean"] == single
    assert found["ivon", "samples"] == [
        *("max_probability", "entropy", "expected_entropy", "mutual_information", "variation_ratio"),
        *("reverse_mutual_information", "expected_pairwise_kl", "length"),
    ]
    assert found["ivon", "samples+draw_temperature"] == found["ivon", "samples"][:-1]
    assert found["plain", "mean+temperature"] == found["ivon", "samples+temperature"] == single[:2]


@pytest.mark.parametrize(
    "score", ["max_probability", "entropy", "mutual_information", "variation_ratio", "length"]
)
def test_areas_are_those_of_the_metrics(records, results, score):
    _, samples, label, rows = arrays(records, "ivon", groups=("easy", "hard"))
    mixture = mixture_log_probs(samples)
    right = (mixture.argmax(1) == label).astype(float)
    uncertainty = {
        "max_probability": -mixture.max(1),
        "entropy": entropy(mixture),
        "mutual_information": mutual_information(samples),
        "variation_ratio": variation_ratio(samples),
        "length": np.array([float(r["num_tokens"]) for r in rows]),
    }
    own, base = uncertainty[score], uncertainty["max_probability"]
    found = row(results, "ivon", "samples", score)
    assert found["auroc"]["value"] == pytest.approx(auroc(own, 1 - right), abs=1e-12)
    assert found["aurc"]["value"] == pytest.approx(aurc(own, right), abs=1e-12)
    assert found["prr"]["value"] == pytest.approx(prediction_rejection_ratio(own, right), abs=1e-12)
    for name in ("auroc", "aurc", "prr"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"] and found[name]["n"] == 110
    if score == "max_probability":
        assert found["auroc_gain"] is None
    else:
        assert found["auroc_gain"]["value"] == pytest.approx(auroc(own, 1 - right) - auroc(base, 1 - right))


def test_the_confidence_agrees_with_the_headline(results):
    for predictor in ("mean", "samples", "samples+temperature"):
        [metrics] = [
            r["metrics"] for r in results["rows"]
            if (r["model"], r["predictor"], r["group"]) == ("ivon", predictor, "all")
        ]  # fmt: skip
        found = row(results, "ivon", predictor, "max_probability")
        for ours, theirs in (("auroc", "auroc_correctness"), ("aurc", "aurc")):
            assert found[ours]["value"] == pytest.approx(metrics[theirs]["value"], abs=1e-12)
            for side in ("low", "high"):  # other resamples of as many items
                assert found[ours][side] == pytest.approx(metrics[theirs][side], abs=0.05)


def table(uncertain, right, tokens=None):
    """One model of two choices that always answers the first, with log p such that ``uncertain`` is its order."""
    rows = []
    for number, (level, correct) in enumerate(zip(uncertain, right, strict=True)):
        p = 0.95 - 0.4 * level
        rows.append(
            Record.from_dict(
                {
                    **{"model": "m", "item": str(number), "split": "test", "group": "g"},
                    **{"num_tokens": 5 if tokens is None else tokens[number], "label": 0 if correct else 1},
                    "log_probs": np.log([p, 1 - p]).tolist(),
                }
            )
        )
    return rows


def test_length_that_knows_and_a_gain_whose_interval_is_paired():
    right = [1, 1, 0, 0] * 10
    rows = table([0.1, 0.9, 0.2, 0.8] * 10, right, tokens=[3, 4, 8, 9] * 10)
    resampler = Resampler(100)
    length, entropies, base = (
        next(
            r
            for r in find_wrong_answers([ChoiceTable("m", rows, resampler)], resampler)
            if r["score"] == name
        )
        for name in ("length", "entropy", "max_probability")
    )
    assert length["auroc"]["value"] == 1 and length["prr"]["value"] == pytest.approx(1)
    assert base["auroc"]["value"] == 0.5 and length["auroc_gain"]["value"] == 0.5
    assert length["auroc_gain"]["low"] > 0.2
    # entropy of two choices is the same order, so the paired difference is 0 on every resample
    assert entropies["auroc_gain"]["low"] == entropies["auroc_gain"]["high"] == 0


def test_many_items_take_fewer_resamples_and_say_so():
    rows = table(np.linspace(0, 1, 2000), [1, 1, 1, 0] * 500)
    resampler = Resampler(300)
    found = find_wrong_answers([ChoiceTable("m", rows, resampler)], resampler)
    assert {r[name]["resamples"] for r in found for name in ("auroc", "aurc", "prr")} == {250}


def test_all_right_leaves_the_ranking_undefined():
    rows = table([0.1, 0.5, 0.9], [1, 1, 1])
    [found, *_] = find_wrong_answers([ChoiceTable("m", rows, Resampler(20))], Resampler(20))
    assert found["auroc"]["value"] is None and found["prr"]["value"] is None and found["aurc"]["value"] == 0


def test_the_report_folds_the_table(results):
    page, rows = render_report(results), wrong_answers(results)
    assert "Which score finds the wrong answers" in page
    assert len(rows) == len(results["wrong_answers"])
    shown = next(
        r
        for r in rows
        if (r["model"], r["predictor"], r["score"]) == ("ivon", "samples", "mutual information")
    )
    area, gain, *_ = shown["cells"]
    value = row(results, "ivon", "samples", "mutual_information")
    assert area.text == f"{value['auroc']['value']:.3f}" and area.interval.startswith("[")
    assert gain.text.replace("\N{MINUS SIGN}", "-") == f"{value['auroc_gain']['value']:+.3f}"
    assert "Which score finds" not in render_report({**results, "wrong_answers": None})
