"""results.json from hand-made records: every number against its metric, pairing, detection, and the figures' data."""

import json

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.draw_temperature import fit_draw_temperature, temper_draws
from vlora.eval.metrics.proper_scores import brier_score, correctness, kl_to_truth, negative_log_likelihood
from vlora.eval.metrics.ranking import auroc, average_precision, fpr_at_tpr
from vlora.eval.metrics.selective import accuracy_at_coverage, aurc, excess_aurc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import (
    chosen_std,
    disagreement,
    entropy,
    expected_entropy,
    expected_pairwise_kl,
    kl_from_mean,
    mixture_log_probs,
    mutual_information,
    reverse_mutual_information,
    variation_ratio,
)
from vlora.eval.results import compute_results, read_results, write_results

GROUPS = {"easy": 60, "hard": 50, "ambiguous": 20, "unknown": 30}
DRAWS = 4
FURTHER = {
    *("augrc", "prediction_rejection_ratio", "accuracy_at_50_coverage", "accuracy_at_90_coverage"),
    *("coverage_at_5_risk", "aupr_error", "aupr_correct", "fpr95_error", "smooth_ece"),
    *(
        "l2_15_equal_width",
        "debiased_l2_15_equal_width",
        "debiased_l1_15_equal_width",
        "mce_15_equal_width",
        "classwise_ece_15_equal_width",
    ),
    *("reliability_isotonic", "resolution_isotonic", "uncertainty_isotonic"),
}


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def make_model(name, noise, draws=DRAWS, seed=0, scale=2.0):
    """Records of one model on shared items: log-probabilities, draws and rows."""
    items = np.random.default_rng(7)
    size = 60 + sum(GROUPS.values())
    truth = items.normal(size=(size, 3)) * 1.5
    label = [int(items.choice(3, p=np.exp(log_softmax(row)))) for row in truth]
    rng = np.random.default_rng(seed)
    logits = scale * truth + noise * rng.normal(size=truth.shape)
    samples = log_softmax(logits + 0.8 * rng.normal(size=(draws, size, 3))) if draws else None
    place = [("validation", "validation")] * 60
    place += [("ood" if g == "unknown" else "test", g) for g, n in GROUPS.items() for _ in range(n)]
    rows = []
    for i, (split, group) in enumerate(place):
        row = {"model": name, "item": f"{split}/{i}", "split": split, "group": group, "num_tokens": 5 + i % 4}
        row |= {
            "text": f"question {i}",
            "choices": ["a", "b", "c"],
            "log_probs": log_softmax(logits)[i].tolist(),
        }
        row |= {"label": label[i] if group not in ("ambiguous", "unknown") else None}
        row |= {"sample_log_probs": None if samples is None else samples[:, i].tolist()}
        if group == "ambiguous":
            row["label_probs"] = np.exp(log_softmax(truth))[i].tolist()
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def records():
    return [*make_model("plain", 2.0, draws=0, seed=1), *make_model("ivon", 0.3, seed=2)]


@pytest.fixture(scope="module")
def results(records):
    models = [{"name": "plain", "kind": "adapter"}, {"name": "ivon", "kind": "posterior", "ess": 9.0}]
    return compute_results(
        records, models=models, num_bootstrap=200, created="2000-01-01", cost={"seconds": 1.0}
    )


def arrays(records, model, splits=("test",), groups=None):
    rows = [
        r
        for r in records
        if r["model"] == model and r["split"] in splits and (not groups or r["group"] in groups)
    ]
    samples = [r["sample_log_probs"] for r in rows]
    stacked = np.array(samples).swapaxes(0, 1) if samples[0] is not None else None
    return np.array([r["log_probs"] for r in rows]), stacked, [r["label"] for r in rows], rows


def metrics_of(results, model, predictor, group):
    [row] = [
        r for r in results["rows"] if (r["model"], r["predictor"], r["group"]) == (model, predictor, group)
    ]
    return row["metrics"]


def test_head_is_complete_and_json(results, tmp_path):
    assert results["format"] == 1 and results["num_samples"] == DRAWS and results["antithetic"] is False
    assert results["models"][1] == {"name": "ivon", "kind": "posterior", "ess": 9.0}
    assert results["cost"] == {"seconds": 1.0} and results["created"] == "2000-01-01"
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == json.loads(json.dumps(results))


def test_scores_times_the_entropy_of_the_base_model(records):
    base = make_model("untouched", 1.0, draws=0, seed=3)
    models = [{"name": "untouched", "kind": "base"}, {"name": "ivon", "kind": "posterior"}]
    detect = {"unknown": {"positive": ["unknown"], "negative": ["easy", "hard"]}}
    rows = [*reversed(base), *(r for r in records if r["model"] == "ivon")]
    found = compute_results(rows, models=models, detect=detect, num_bootstrap=20)["detection"]
    got = {(d["model"], d["predictor"], d["score"]): d["auroc"]["value"] for d in found}
    groups = ("easy", "hard", "unknown")
    _, samples, _, asked = arrays(rows, "ivon", ("test", "ood"), groups)
    plain = {r["item"]: r["log_probs"] for r in base}
    ignorance = entropy(np.array([plain[r["item"]] for r in asked]))
    unknown = np.array([r["group"] == "unknown" for r in asked])
    want = auroc(mutual_information(samples) * ignorance, unknown)
    assert got["ivon", "samples", "mutual_information_times_base"] == pytest.approx(want, abs=1e-12)
    want = auroc(entropy(mixture_log_probs(samples)) * ignorance, unknown)
    assert got["ivon", "samples", "entropy_times_base"] == pytest.approx(want, abs=1e-12)
    assert not any(model == "untouched" and "base" in score for model, _, score in got)


def test_rows_cover_models_predictors_and_groups(results):
    found = {(r["model"], r["predictor"]) for r in results["rows"]}
    means = ("mean", "mean+temperature")
    samples = ("samples", "samples+temperature", "samples+draw_temperature")
    assert found == {("plain", p) for p in means} | {("ivon", p) for p in means + samples}
    assert {r["group"] for r in results["rows"]} == {"all", *GROUPS}
    unknown = metrics_of(results, "ivon", "samples", "unknown")
    assert set(unknown) == {
        *("mean_confidence", "confident_share", "entropy", "expected_entropy", "mutual_information"),
        *("variation_ratio", "disagreement", "chosen_std", "kl_from_mean"),
        *("reverse_mutual_information", "expected_pairwise_kl"),
    }
    tempered = metrics_of(results, "ivon", "samples+draw_temperature", "unknown")
    assert set(tempered) == (set(unknown) | {"temperature"}) - {"kl_from_mean"}
    assert "mutual_information" not in metrics_of(results, "plain", "mean", "all")
    assert "expected_entropy" not in metrics_of(results, "ivon", "samples+temperature", "all")


def test_tempered_draws_are_fitted_and_split_on_their_own(records, results):
    """One T for all draws from the validation rows; mixture and split are those of these draws."""
    _, held_out, held_label, _ = arrays(records, "ivon", ("validation",))
    fitted = fit_draw_temperature(held_out, held_label)
    _, samples, label, _ = arrays(records, "ivon", ("test",), ("easy", "hard"))
    tempered = temper_draws(samples, fitted.temperature)
    found = metrics_of(results, "ivon", "samples+draw_temperature", "all")
    assert found["temperature"]["value"] == pytest.approx(fitted.temperature)
    assert found["temperature"]["low"] < fitted.temperature < found["temperature"]["high"]
    mixture = mixture_log_probs(tempered)
    assert found["nll"]["value"] == pytest.approx(negative_log_likelihood(mixture, label).mean)
    for name, measure in (
        ("expected_entropy", expected_entropy),
        ("mutual_information", mutual_information),
        ("reverse_mutual_information", reverse_mutual_information),
        ("expected_pairwise_kl", expected_pairwise_kl),
        ("chosen_std", chosen_std),
    ):
        assert found[name]["value"] == pytest.approx(measure(tempered).mean()), name
    other = metrics_of(results, "ivon", "samples+temperature", "all")
    assert abs(found["nll"]["value"] - other["nll"]["value"]) > 1e-6
    pairs = [c for c in results["comparisons"] if c["predictor"] == "samples+draw_temperature"]
    assert pairs and {(c["predictor_a"], c["predictor_b"]) for c in pairs} == {
        ("samples+draw_temperature", "mean+temperature")
    }
    assert all("draw_temperature" not in one["predictor"] for one in results["figures"]["reliability"])


def test_the_divergences_of_the_draws_are_scores(records, results):
    _, samples, _, asked = arrays(records, "ivon", ("test", "ood"), ("easy", "hard", "unknown"))
    unknown = np.array([r["group"] == "unknown" for r in asked])
    got = {(d["predictor"], d["score"]): d for d in results["detection"] if d["name"] == "unknown vs test"}
    for name, measure in (
        ("reverse_mutual_information", reverse_mutual_information),
        ("expected_pairwise_kl", expected_pairwise_kl),
    ):
        found = got["samples", name]["auroc"]
        assert found["value"] == pytest.approx(auroc(measure(samples), unknown), abs=1e-12)
        assert found["draw_error"] > 0
        assert ("samples+draw_temperature", name) in got and ("samples+temperature", name) not in got
        assert any(r["score"] == name and r["predictor"] == "samples" for r in results["wrong_answers"])


@pytest.mark.parametrize(
    ("model", "predictor"), [("plain", "mean"), ("ivon", "samples"), ("ivon", "samples+temperature")]
)
@pytest.mark.parametrize("group", ["all", "hard"])
def test_values_are_those_of_the_metrics(records, results, model, predictor, group):
    groups = ("easy", "hard") if group == "all" else (group,)

    def predict(*args):
        at_mean, samples, *rest = arrays(records, model, *args)
        return (mixture_log_probs(samples) if predictor.startswith("samples") else at_mean), samples, *rest

    log_probs, samples, label, _ = predict(("test",), groups)
    if "+" in predictor:
        held_out, _, held_label, _ = predict(("validation",))
        temperature = fit_temperature(held_out, held_label).temperature
        log_probs = temper(log_probs, temperature)
        assert metrics_of(results, model, predictor, group)["temperature"]["value"] == pytest.approx(
            temperature
        )
    confidence, correct = np.exp(log_probs.max(1)), correctness(log_probs, label)
    expected = {
        "accuracy": correct.mean(),
        "nll": negative_log_likelihood(log_probs, label).mean,
        "brier": brier_score(log_probs, label).mean(),
        "calibration_gap": confidence.mean() - correct.mean(),
        "ece_15_equal_width": calibration(confidence, correct).ece,
        "ece_15_equal_mass": calibration(confidence, correct, 15, "equal_mass").ece,
        "auroc_correctness": auroc(confidence, correct),
        "aurc": aurc(-confidence, correct),
        "excess_aurc": excess_aurc(-confidence, correct),
        "accuracy_at_80_coverage": accuracy_at_coverage(-confidence, correct, 0.8),
        "mean_confidence": confidence.mean(),
        "confident_share": (confidence > 0.5).mean(),
        "entropy": entropy(log_probs).mean(),
    }
    if predictor == "samples":
        expected["expected_entropy"] = expected_entropy(samples).mean()
        expected["mutual_information"] = mutual_information(samples).mean()
        expected["reverse_mutual_information"] = reverse_mutual_information(samples).mean()
        expected["expected_pairwise_kl"] = expected_pairwise_kl(samples).mean()
        expected["variation_ratio"] = variation_ratio(samples).mean()
        expected["disagreement"] = disagreement(samples).mean()
        at_mean = arrays(records, model, ("test",), groups)[0]
        expected["chosen_std"] = chosen_std(samples).mean()
        expected["kl_from_mean"] = kl_from_mean(samples, at_mean).mean()
    found = metrics_of(results, model, predictor, group)
    further = FURTHER if group == "all" else set()
    assert set(found) - {"temperature"} == set(expected) | further
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
        assert found[name]["n"] == len(label)
        assert found[name]["low"] < found[name]["high"], name
    for name in ("accuracy", "nll", "brier", "aurc", "entropy", "auroc_correctness"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"], name
    floor = calibration_floor(confidence)
    assert found["ece_15_equal_width"]["floor"] == pytest.approx(floor.mean, rel=0.05)
    assert found["ece_15_equal_width"]["floor"] < found["ece_15_equal_width"]["floor_high"]


def test_known_distributions_are_scored_by_divergence(records, results):
    log_probs, _, _, rows = arrays(records, "plain", groups=("ambiguous",))
    found = metrics_of(results, "plain", "mean", "ambiguous")
    truth = np.array([r["label_probs"] for r in rows])
    assert found["kl_to_truth"]["value"] == pytest.approx(kl_to_truth(truth, log_probs).mean())
    assert "accuracy" not in found
    [compared] = [
        c for c in results["comparisons"] if c["metric"] == "kl_to_truth" and c["predictor"] == "mean"
    ]
    assert compared["group"] == "ambiguous" and compared["difference"]["n"] == GROUPS["ambiguous"]


def test_comparisons_are_paired_and_plain_adapters_stand_with_their_mean(records, results):
    found = {(c["predictor"], c["group"], c["metric"]): c for c in results["comparisons"]}
    one = found["samples", "all", "nll"]
    assert (one["a"], one["b"], one["predictor_a"], one["predictor_b"]) == (
        "ivon",
        "plain",
        "samples",
        "mean",
    )
    at_mean, _, label, _ = arrays(records, "plain", groups=("easy", "hard"))
    _, samples, *_ = arrays(records, "ivon", groups=("easy", "hard"))
    nll_a = negative_log_likelihood(mixture_log_probs(samples), label).per_item
    difference = nll_a - negative_log_likelihood(at_mean, label).per_item
    assert one["difference"]["value"] == pytest.approx(difference.mean())
    width = 2 * 1.96 * difference.std() / len(label) ** 0.5
    assert one["difference"]["high"] - one["difference"]["low"] == pytest.approx(width, rel=0.25)
    assert one["difference"]["high"] < 0  # the less noisy model is better
    assert {c["group"] for c in results["comparisons"] if c["metric"] == "accuracy"} == {
        "all",
        "easy",
        "hard",
    }


def test_default_detection_and_length_baseline(records, results):
    assert {d["name"] for d in results["detection"]} == {"unknown vs test"}
    assert results["detection"][0]["negative"] == ["easy", "hard"]
    log_probs, *_, rows = arrays(records, "plain", ("test", "ood"), ("easy", "hard", "unknown"))
    odd = np.array([r["split"] == "ood" for r in rows])
    found = {(d["model"], d["predictor"], d["score"]): d for d in results["detection"]}
    score = found["plain", "mean", "max_probability"]
    assert score["auroc"]["value"] == pytest.approx(auroc(-log_probs.max(1), odd))
    assert score["fpr95"]["value"] == pytest.approx(fpr_at_tpr(-log_probs.max(1), odd))
    assert score["auroc"]["low"] < score["auroc"]["value"] < score["auroc"]["high"]
    length = found["plain", "mean", "length"]
    assert length["auroc"]["value"] == pytest.approx(auroc([r["num_tokens"] for r in rows], odd))
    scores = {s for m, p, s in found if (m, p) == ("ivon", "samples")}
    assert scores == {
        *("max_probability", "entropy", "expected_entropy", "mutual_information", "variation_ratio"),
        *("reverse_mutual_information", "expected_pairwise_kl"),
    }
    assert score["aupr"]["value"] == pytest.approx(average_precision(-log_probs.max(1), odd))
    assert score["aupr"]["chance"] == pytest.approx(odd.mean())


def test_detection_questions_of_the_user(records):
    detect = {"hard": {"positive": ["hard"], "negative": ["easy"]}}
    found = compute_results(records, detect=detect, num_bootstrap=20)["detection"]
    assert {d["name"] for d in found} == {"hard"} and found[0]["auroc"]["n"] == GROUPS["easy"] + GROUPS[
        "hard"
    ]
    for bad, message in (
        (
            {"positive": ["hrad"], "negative": ["easy"]},
            "groups out of easy, hard, ambiguous, unknown, got \\['hrad'\\]",
        ),
        ({"positive": ["easy"], "negative": ["easy"]}, "'easy' cannot be both"),
        ({"positive": ["easy"]}, "needs the keys positive and negative"),
    ):
        with pytest.raises(DataError, match=message):
            compute_results(records, detect={"q": bad}, num_bootstrap=5)


def test_figures_hold_bounded_plain_data(records, results):
    figures = results["figures"]
    bins = next(f for f in figures["reliability"] if (f["model"], f["predictor"]) == ("plain", "mean"))[
        "bins"
    ]
    assert sum(b["n"] for b in bins) == 110
    assert all(
        b["low"] <= b["accuracy"] <= b["high"] and b["lower"] <= b["confidence"] <= b["upper"] for b in bins
    )
    curve = next(f for f in figures["risk_coverage"] if (f["model"], f["predictor"]) == ("plain", "mean"))
    assert curve["coverage"][-1] == 1.0
    assert curve["risk"][-1] == pytest.approx(
        1 - metrics_of(results, "plain", "mean", "all")["accuracy"]["value"], abs=1e-6
    )
    assert {f["group"] for f in figures["entropy_mi"]} == set(GROUPS) and {
        f["model"] for f in figures["entropy_mi"]
    } == {"ivon"}
    wrong = [m for m in figures["mistakes"] if m["model"] == "plain"]
    assert 0 < len(wrong) <= 10 and all(m["label"] != m["prediction"] for m in wrong)
    assert [m["confidence"] for m in wrong] == sorted((m["confidence"] for m in wrong), reverse=True)
    assert {m["group"] for m in figures["unanswerable"]} == {"unknown"}


def test_same_input_same_numbers_in_any_order(records):
    first = compute_results(records, num_bootstrap=30, created="x")
    assert compute_results(records, num_bootstrap=30, created="x") == first
    half = [r for r in records if r["model"] == "ivon"]
    order = np.random.default_rng(0).permutation(len(half))
    moved = compute_results([half[i] for i in order], num_bootstrap=30)
    for name, value in metrics_of(first, "ivon", "samples", "all").items():
        assert metrics_of(moved, "ivon", "samples", "all")[name]["value"] == pytest.approx(value["value"])


def test_impossible_labels_are_counted_not_clipped():
    rows = make_model("m", 0.5, draws=0)
    row = next(r for r in rows if r["group"] == "hard")
    row |= {"log_probs": [0.0, None, None], "label": 1}
    found = metrics_of(compute_results(rows, num_bootstrap=10), "m", "mean", "hard")["nll"]
    assert found["value"] is None and found["low"] is None and found["infinite"] == 1
    assert found["finite_mean"] > 0


def test_choices_may_differ_in_number():
    rows = make_model("m", 0.5, draws=0)
    for row in rows[60:80]:
        row |= {
            "log_probs": log_softmax(np.array(row["log_probs"])[:2]).tolist(),
            "choices": ["a", "b"],
            "label": 0,
        }
    found = compute_results(rows, num_bootstrap=10)
    assert 0 < metrics_of(found, "m", "mean", "easy")["entropy"]["value"] < np.log(3)


def test_records_that_do_not_fit_are_named(records):
    ivon = [r for r in records if r["model"] == "ivon"]
    with pytest.raises(DataError, match="models are named x, but the records hold ivon"):
        compute_results(ivon, models=[{"name": "x"}])
    with pytest.raises(DataError, match="only 220 different items; was it evaluated twice"):
        compute_results([*ivon, ivon[0]])
    with pytest.raises(DataError, match="must have the same draws, got \\[0, 4\\] draws"):
        compute_results([{**ivon[0], "sample_log_probs": None}, *ivon[1:]])
    with pytest.raises(DataError, match="all records belong to the validation split"):
        compute_results(ivon[:60])
    with pytest.raises(DataError, match="there are no records"):
        compute_results([])
    with pytest.raises(DataError, match="'all' is the name of the group of all test rows"):
        compute_results([{**row, "group": "all"} for row in ivon])


def test_reading_refuses_what_it_does_not_know(tmp_path):
    path = tmp_path / "results.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "is not a results.json"),
        ('{"format": 99, "rows": []}', "has format 99, this version reads up to 1"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_results(path)
    with pytest.raises(DataError, match="is not a file"):
        read_results(tmp_path / "none.json")


@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_single_item_gives_numbers_or_none_but_no_warning(num_choices):
    log_probs = log_softmax(np.arange(float(num_choices))).tolist()
    row = {
        "model": "m",
        "item": "1",
        "split": "test",
        "group": "g",
        "num_tokens": 3,
        "label": 0,
        "log_probs": log_probs,
    }
    held_out = {**row, "item": "2", "split": "validation", "sample_log_probs": [log_probs]}
    rows = [{**row, "sample_log_probs": [log_probs]}, held_out]
    found = metrics_of(compute_results(rows, num_bootstrap=7), "m", "samples+temperature", "all")
    assert found["accuracy"]["value"] == (1.0 if num_choices == 1 else 0.0)
    assert found["auroc_correctness"] == {"value": None, "low": None, "high": None, "n": 1}
