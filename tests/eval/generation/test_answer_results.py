"""Numbers from records: known AUROCs, counts of what is missing, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from test_answer_estimators import record

from vlora.errors import DataError
from vlora.eval.generation.results import compute_answer_results
from vlora.eval.generation.table import answer_table
from vlora.eval.metrics.abstention import abstention_scores
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.intervals import resample_counts
from vlora.eval.metrics.rejection import prediction_rejection_ratio


def made(nlls, correct, split="test", group="all", model="m", **changes):
    base = record()
    return [
        replace(
            base,
            model=model, item=f"{split}/{group}/{number}", split=split, group=group, correct=right,
            answer=replace(base.answer, log_probs=[-nll], draw_log_probs=[-nll, -nll]), **changes,
        )
        for number, (nll, right) in enumerate(zip(nlls, correct, strict=True))
    ]  # fmt: skip


def row(results, section, **wanted):
    (found,) = [r for r in results[section] if all(r[k] == v for k, v in wanted.items())]
    return found


def test_estimators_are_ranked_against_wrong_answers():
    nlls, correct = [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 1.0, 0.0]
    results = compute_answer_results(made(nlls, correct), num_bootstrap=50)
    found = row(results, "estimators", estimator="max_probability", group="all")
    assert found["metrics"]["auroc"]["value"] == 0.75 and found["metrics"]["auroc"]["n"] == 4
    assert found["metrics"]["prr"]["value"] == pytest.approx(prediction_rejection_ratio(nlls, correct))
    assert found["metrics"]["accuracy_at_80"]["value"] == 0.5
    assert found["metrics"]["aupr"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    same = row(results, "estimators", estimator="semantic_entropy", group="all")
    assert same["metrics"]["auroc"]["value"] == 0.5  # equal for all: chance, whatever the order
    assert same["family"] == "samples" and same["missing"] == 0


def test_a_missing_score_ranks_last_and_is_counted():
    rows = made([0.1, 0.2, 0.3], [1.0, 1.0, 0.0])
    rows = [replace(r, measured={"contradiction": v}) for r, v in zip(rows, [0.2, 0.1, None], strict=True)]
    found = row(compute_answer_results(rows, num_bootstrap=20), "estimators", estimator="contradiction")
    assert found["missing"] == 1 and found["metrics"]["auroc"]["value"] == 1.0


def test_what_could_not_be_graded_is_counted_and_not_ranked():
    rows = made([0.1, 0.2, 0.3], [1.0, None, 0.0], judge_failures=2)
    results = compute_answer_results(rows, num_bootstrap=20)
    answers = row(results, "answers", group="all")
    assert (answers["questions"], answers["ungraded"], answers["judge_failures"]) == (3, 1, 6)
    assert answers["metrics"]["correct"]["value"] == 0.5
    assert row(results, "estimators", estimator="max_probability")["metrics"]["auroc"]["n"] == 2


def test_declined_answers_and_the_penalty():
    rows = made([0.1, 0.2], [1.0, 0.0]) + [replace(made([0.3], [0.0])[0], item="test/x", attempted=False)]
    answers = row(compute_answer_results(rows, threshold=0.75, num_bootstrap=20), "answers", group="all")
    assert answers["metrics"]["not_attempted"]["value"] == pytest.approx(1 / 3)
    assert answers["metrics"]["accuracy_given_attempted"]["value"] == 0.5
    assert answers["metrics"]["penalised_score"]["value"] == pytest.approx((1 - 3) / 3)


def test_shares_and_calibration_errors_have_intervals():
    rng = np.random.default_rng(3)
    correct = (rng.random(80) < 0.6).astype(float)
    nlls = rng.uniform(0.05, 2.0, 80)
    said = rng.random(80) < 0.7
    rows = [replace(r, attempted=bool(a)) for r, a in zip(made(nlls, correct), said, strict=True)]
    results = compute_answer_results(rows, num_bootstrap=400, seed=5)
    metrics = row(results, "answers", group="all")["metrics"]
    scores = abstention_scores(said.astype(float), correct)
    counts = resample_counts(80, 400, 5)
    drawn = [np.repeat(np.arange(80), own) for own in counts]
    for name in ("accuracy_given_attempted", "f_score"):
        replicates = [getattr(abstention_scores(said[i].astype(float), correct[i]), name) for i in drawn]
        low, high = np.quantile(replicates, [0.025, 0.975])
        found = metrics[name]
        assert found["value"] == pytest.approx(getattr(scores, name))
        assert (found["low"], found["high"]) == pytest.approx((low, high)) and low < found["value"] < high
    sure, right = np.exp(-nlls)[said], correct[said]
    found = row(results, "confidences", confidence="max_probability")["metrics"]["ece_15_equal_width"]
    errors = [
        calibration(sure[i], right[i]).ece
        for i in (np.repeat(np.arange(len(sure)), own) for own in resample_counts(len(sure), 400, 5))
    ]
    assert found["value"] == pytest.approx(calibration(sure, right).ece)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(errors, [0.025, 0.975])))


def test_nothing_attempted_has_no_accuracy_and_an_f_of_zero():
    rows = [replace(r, attempted=False) for r in made([0.1, 0.2], [0.0, 0.0])]
    metrics = row(compute_answer_results(rows, num_bootstrap=20), "answers", group="all")["metrics"]
    given = metrics["accuracy_given_attempted"]
    assert (given["value"], given["low"], given["high"], given["n"]) == (None, None, None, 2)
    assert (metrics["f_score"]["value"], metrics["f_score"]["high"]) == (0, 0)


def test_declined_answers_are_not_ranked():
    rows = made([0.1, 0.2, 0.3], [1.0, 0.0, 0.0])
    rows[2] = replace(rows[2], attempted=False)
    results = compute_answer_results(rows, num_bootstrap=20)
    assert row(results, "estimators", estimator="max_probability")["metrics"]["auroc"]["n"] == 2
    found = row(results, "confidences", confidence="max_probability")["metrics"]
    assert found["brier"]["n"] == 2 and found["penalised_score"]["n"] == 3


def test_confidences_are_calibrated_on_validation_rows_alone():
    rng = np.random.default_rng(0)
    nll = rng.exponential(1.0, 400)
    right = (rng.random(400) < np.exp(-nll / 3)).astype(float)  # truth: p^(1/3)
    rows = made(nll[:200], right[:200]) + made(nll[200:], right[200:], split="validation", group="validation")
    results = compute_answer_results(rows, num_bootstrap=20)
    plain = row(results, "confidences", confidence="max_probability", group="all")
    tempered = row(results, "confidences", confidence="max_probability+temperature", group="all")
    assert plain["temperature"] == 1 and tempered["temperature"] == pytest.approx(3, rel=0.3)
    for name in ("brier", "ece_15_equal_width"):
        assert tempered["metrics"][name]["value"] < plain["metrics"][name]["value"]
    assert tempered["metrics"]["penalised_score"]["value"] >= -0.05
    assert not any(r["group"] == "validation" for r in results["answers"])


def test_detection_between_groups_needs_no_labels():
    rows = made([0.1, 0.2], [1.0, 1.0]) + made([0.5, 0.9], [None, None], split="ood", group="unknown")
    results = compute_answer_results(rows, num_bootstrap=20)
    found = row(results, "detection", estimator="max_probability")
    assert found["question"] == "unknown vs test" and found["auroc"]["value"] == 1.0
    with pytest.raises(DataError, match="detect.x: no group 'unknwon'; the data hold all, unknown"):
        compute_answer_results(rows, detect={"x": {"positive": ["unknwon"], "negative": ["all"]}})


def test_one_class_leaves_the_ranking_out():
    results = compute_answer_results(made([0.1, 0.2], [1.0, 1.0]), num_bootstrap=20)
    assert results["estimators"] == [] and results["answers"][0]["metrics"]["correct"]["value"] == 1


def test_bad_records():
    rows = made([0.1], [1.0])
    with pytest.raises(DataError, match="answered test/all/0 twice"):
        compute_answer_results(rows + rows)
    with pytest.raises(DataError, match="no answers to report on"):
        compute_answer_results([])


def test_the_table_shows_every_estimator_of_every_model():
    rows = made([0.1, 0.2, 0.3], [1.0, 0.0, 1.0]) + made([0.3, 0.2, 0.1], [1.0, 0.0, 1.0], model="other")
    results = compute_answer_results(rows, num_bootstrap=20)
    text = answer_table({**results, "models": [{"name": "m"}, {"name": "other"}]})
    line = next(line for line in text.splitlines() if "max_probability" in line)
    ratio = prediction_rejection_ratio([0.1, 0.2, 0.3], [1.0, 0.0, 1.0])
    assert line.split() == ["max_probability", *["0.500", f"({ratio:.2f})"] * 2]
    assert "scored_semantic_information" in text and "correct" in text
