"""The full set of metrics on all test items: each number is its pure metric, each interval comes from resamples."""

import numpy as np
import pytest
from test_results import arrays, make_model, metrics_of

from vlora.eval.metrics.calibration import calibration, debiased_l1, debiased_l2
from vlora.eval.metrics.classwise import classwise_ece
from vlora.eval.metrics.conformal import conformal_threshold, lac_scores, prediction_sets
from vlora.eval.metrics.crossed import crossed_bootstrap
from vlora.eval.metrics.decomposition import isotonic_decomposition
from vlora.eval.metrics.intervals import bootstrap, resample_counts
from vlora.eval.metrics.proper_scores import brier_score, correctness
from vlora.eval.metrics.ranking import average_precision, fpr_at_tpr
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import accuracy_at_coverage, augrc, coverage_at_risk
from vlora.eval.metrics.smooth_calibration import smooth_ece
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.report import render_report
from vlora.eval.results import compute_results


@pytest.fixture(scope="module")
def records():
    return [*make_model("plain", 2.0, draws=0, seed=1), *make_model("ivon", 0.3, seed=2)]


@pytest.fixture(scope="module")
def results(records):
    return compute_results(records, num_bootstrap=200, created="2000-01-01")


@pytest.mark.parametrize(("model", "predictor"), [("plain", "mean"), ("ivon", "samples")])
def test_values_are_those_of_the_pure_metrics(records, results, model, predictor):
    at_mean, samples, label, _ = arrays(records, model, groups=("easy", "hard"))
    log_probs = mixture_log_probs(samples) if predictor == "samples" else at_mean
    confidence, correct = np.exp(log_probs.max(1)), correctness(log_probs, label)
    unsure, bins = -confidence, calibration(confidence, correct)
    parts = isotonic_decomposition(confidence, correct)
    expected = {
        "augrc": augrc(unsure, correct),
        "prediction_rejection_ratio": prediction_rejection_ratio(unsure, correct),
        "accuracy_at_50_coverage": accuracy_at_coverage(unsure, correct, 0.5),
        "accuracy_at_90_coverage": accuracy_at_coverage(unsure, correct, 0.9),
        "coverage_at_5_risk": coverage_at_risk(unsure, correct, 0.05),
        "aupr_error": average_precision(unsure, 1 - correct),
        "aupr_correct": average_precision(confidence, correct),
        "fpr95_error": fpr_at_tpr(unsure, 1 - correct),
        "smooth_ece": smooth_ece(confidence, correct),
        "l2_15_equal_width": bins.error(2),
        "debiased_l2_15_equal_width": debiased_l2(bins),
        "debiased_l1_15_equal_width": debiased_l1(bins),
        "mce_15_equal_width": bins.maximum_error(),
        "classwise_ece_15_equal_width": classwise_ece(log_probs, label).mean(),
        "reliability_isotonic": parts.reliability,
        "resolution_isotonic": parts.resolution,
        "uncertainty_isotonic": parts.uncertainty,
    }
    found = metrics_of(results, model, predictor, "all")
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-9), name
        assert found[name]["low"] <= found[name]["high"] and found[name]["n"] == len(label), name
    assert found["smooth_ece"]["floor"] < found["smooth_ece"]["floor_high"]
    assert found["aupr_error"]["chance"] == pytest.approx(1 - correct.mean())
    assert not set(expected) & set(metrics_of(results, model, predictor, "hard"))


def test_intervals_of_resampled_forms_are_those_of_laid_out_resamples(records):
    """One resample laid out item by item gives the replicate of the vectorised statistic."""
    from vlora.eval.further_metrics import _binned, _selective

    log_probs, _, label, _ = arrays(records, "plain", groups=("easy", "hard"))
    order = np.argsort(-log_probs.max(1), kind="stable")
    columns = {"log_confidence": log_probs.max(1)[order], "correct": correctness(log_probs, label)[order]}
    columns["confidence"] = np.exp(columns["log_confidence"])
    counts = resample_counts(len(label), 5, seed=3)
    selective, binned = bootstrap(_selective(columns), counts), bootstrap(_binned(columns), counts)
    for row, count in enumerate(counts):
        picked = np.repeat(np.arange(len(label)), count)
        c, y = columns["confidence"][picked], columns["correct"][picked]
        u, bins = -columns["log_confidence"][picked], calibration(c, y)
        laid_out = [
            *(augrc(u, y), prediction_rejection_ratio(u, y), accuracy_at_coverage(u, y, 0.5)),
            *(accuracy_at_coverage(u, y, 0.9), coverage_at_risk(u, y, 0.05), average_precision(u, 1 - y)),
            *(average_precision(-u, y), fpr_at_tpr(u, 1 - y)),
        ]
        assert selective[row] == pytest.approx(laid_out)
        expected = [bins.error(2), debiased_l2(bins), debiased_l1(bins), bins.maximum_error()]
        assert binned[row] == pytest.approx(expected)


def test_draws_widen_the_interval_of_the_sampled_predictor_alone(records, results):
    found = metrics_of(results, "ivon", "samples", "all")
    ranged = {
        name for name in found if name != "uncertainty_isotonic"
    }  # has its largest value at an accuracy of 1/2
    assert {
        "smooth_ece",
        "mce_15_equal_width",
        "mutual_information",
        "chosen_std",
        "reliability_isotonic",
    } <= ranged
    for name in ranged:
        assert found[name]["draw_error"] > 0 and found[name]["crossed_low"] < found[name]["crossed_high"], (
            name
        )
    for name in ("accuracy", "nll", "brier", "ece_15_equal_width", "auroc_correctness", "aurc"):
        entry = found[name]
        assert entry["draw_error"] > 0 and entry["crossed_low"] < entry["value"] < entry["crossed_high"], name
        assert entry["crossed_high"] - entry["crossed_low"] > 0.9 * (entry["high"] - entry["low"]), name
        assert "draw_error" not in metrics_of(results, "ivon", "mean", "all")[name]
    _, samples, label, _ = arrays(records, "ivon", groups=("easy", "hard"))
    per_item = brier_score(mixture_log_probs(samples), label)
    counts = resample_counts(len(label), 200, (0, 0))
    order = np.argsort(-mixture_log_probs(samples).max(1), kind="stable")  # of the resampled items
    direct = crossed_bootstrap(
        lambda log_probs: float(brier_score(log_probs, label).mean()),
        samples,
        bootstrap(lambda w: w @ per_item[order], counts) / len(label),
        num_resamples=100,
    )
    assert found["brier"]["draw_error"] == pytest.approx(direct.draw_error)
    assert found["brier"]["crossed_low"] == pytest.approx(direct.interval.low)


def test_one_draw_has_no_draw_error():
    rows = make_model("m", 0.5, draws=1)
    found = metrics_of(compute_results(rows, num_bootstrap=20), "m", "samples", "all")
    assert found["nll"]["draw_error"] is None and found["nll"]["crossed_low"] is None
    assert found["nll"]["item_error"] > 0


def test_choices_without_identity_have_no_classwise_error(records):
    rows = [
        {**row, "choices": [f"{row['item']} {k}" for k in range(3)]}
        for row in records
        if row["model"] == "plain"
    ]
    found = metrics_of(compute_results(rows, num_bootstrap=20), "plain", "mean", "all")
    assert "classwise_ece_15_equal_width" not in found and "smooth_ece" in found


def test_one_class_of_answers_leaves_ranking_undefined_and_nothing_else(records):
    rows = [
        {**row, "log_probs": [0.0, None, None], "label": 0}
        for row in records
        if row["model"] == "plain" and row["group"] in ("easy", "hard")
    ]
    found = metrics_of(compute_results(rows, num_bootstrap=20), "plain", "mean", "all")
    for name in ("prediction_rejection_ratio", "aupr_error", "fpr95_error", "auroc_correctness"):
        assert found[name]["value"] is None, name
    assert found["smooth_ece"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["aupr_correct"]["value"] == 1.0 and found["coverage_at_5_risk"]["value"] == 1.0


def test_promises_are_checked_on_other_rows(records, results):
    found = {(p["model"], p["predictor"], p["set"]): p for p in results["promises"]}
    assert set(found) == {
        (model, predictor, name)
        for model, predictor in (("plain", "mean"), ("ivon", "mean"), ("ivon", "samples"))
        for name in ("test", "unknown")
    }
    held_out, _, label, _ = arrays(records, "plain", ("validation",))
    log_probs, _, truth, _ = arrays(records, "plain", groups=("easy", "hard"))
    threshold = conformal_threshold(lac_scores(held_out)[np.arange(60), label], 0.1)
    sets = prediction_sets(lac_scores(log_probs), threshold)
    entry = found["plain", "mean", "test"]
    (rule,) = [rule for rule in entry["conformal"] if rule["method"] == "lac"]
    assert entry["fitted_on"] == 60 and entry["labelled"] == 110
    assert rule["coverage"] == pytest.approx(sets[np.arange(110), truth].mean())
    assert rule["mean_size"] == pytest.approx(sets.sum(1).mean())
    assert found["ivon", "samples", "unknown"]["unanswerable"]["rows"] == 30
    page = render_report(results)
    assert "Prediction sets and" in page and "LAC sets hold it" in page and "0 of 30" in page
    without = [row for row in records if row["split"] != "validation"]
    assert compute_results(without, num_bootstrap=5)["promises"] == []
