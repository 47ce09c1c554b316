"""results.json of language modelling: sums over tokens, documents as the unit of the intervals."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.intervals import resample_counts
from vlora.eval.metrics.smooth_calibration import smooth_ece, smooth_ece_of_clusters
from vlora.eval.results import compute_results


def make_model(name, shift=0.0, sampled=True, documents=40):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(documents):
        size = int(rng.integers(3, 30))
        level = rng.uniform(
            0.3, 0.9
        )  # tokens of one document are alike, which is why documents are resampled
        confidence = np.clip(level + 0.05 * rng.normal(size=size), 0.01, 0.99)
        lm = {"num_tokens": size, "correct": (rng.random(size) < level).astype(int).tolist()}
        lm |= {
            "confidence": confidence.tolist(),
            "entropy": (1 - confidence).tolist(),
            "nll": size * (1.1 - level) + shift,
        }
        if sampled:
            lm |= {
                "nll_samples": lm["nll"] - 0.1,
                "nll_sequence": lm["nll"] - 0.2,
                "sample_correct": lm["correct"],
            }
            lm |= {"sample_confidence": lm["confidence"], "total_entropy": (1.2 - confidence).tolist()}
            lm |= {"expected_entropy": (1.0 - confidence).tolist()}
        split, group = ("ood", "odd") if i >= documents - 10 else ("test", "stories")
        rows.append(
            {
                "model": name,
                "item": f"{group}/{i}",
                "split": split,
                "group": group,
                "num_tokens": i % 5,
                "lm": lm,
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows():
    return [*make_model("a"), *make_model("b", 0.5, sampled=False)]


@pytest.fixture(scope="module")
def results(rows):
    return compute_results(rows, num_bootstrap=300, num_samples=5, task="causal_lm")


def metrics_of(results, model, predictor, group="all"):
    [row] = [
        r for r in results["rows"] if (r["model"], r["predictor"], r["group"]) == (model, predictor, group)
    ]
    return row["metrics"]


def test_values_are_sums_over_tokens(rows, results):
    scores = [r["lm"] for r in rows if r["model"] == "a" and r["split"] == "test"]
    tokens = sum(s["num_tokens"] for s in scores)
    found = metrics_of(results, "a", "mean")
    nll = sum(s["nll"] for s in scores) / tokens
    assert found["nll"]["value"] == pytest.approx(nll)
    assert found["nll"]["n"] == 30 and found["nll"]["tokens"] == tokens
    assert found["perplexity"]["value"] == pytest.approx(np.exp(nll))
    assert found["perplexity"]["low"] == pytest.approx(np.exp(found["nll"]["low"]), rel=1e-3)
    confidence = np.concatenate([s["confidence"] for s in scores])
    correct = np.concatenate([s["correct"] for s in scores])
    assert found["accuracy"]["value"] == pytest.approx(correct.mean())
    assert found["ece_15_equal_width"]["value"] == pytest.approx(calibration(confidence, correct).ece)
    assert found["ece_15_equal_width"]["floor"] > 0
    assert found["entropy"]["value"] == pytest.approx((1 - confidence).mean())


def test_smooth_calibration_of_the_next_token_has_documents_as_its_unit(rows, results):
    scores = [r["lm"] for r in rows if r["model"] == "a" and r["split"] == "test"]
    found = metrics_of(results, "a", "mean")["smooth_ece"]
    confidence = np.concatenate([s["confidence"] for s in scores])
    correct = np.concatenate([s["correct"] for s in scores]).astype(float)
    assert found["value"] == pytest.approx(smooth_ece(confidence, correct))
    assert found["n"] == 30 and found["tokens"] == len(correct) and found["resamples"] == 200
    assert 0 < found["floor"] < found["floor_high"] < 0.1
    document = np.repeat(np.arange(30), [s["num_tokens"] for s in scores])
    replicates = smooth_ece_of_clusters(confidence, correct, document)(
        resample_counts(30, 300, 0)[:200].astype(float)
    )
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(replicates, [0.025, 0.975]))
    drawn = metrics_of(results, "a", "samples")["smooth_ece"]["value"]
    mixed = np.concatenate([s["sample_confidence"] for s in scores])
    right = np.concatenate([s["sample_correct"] for s in scores]).astype(float)
    assert drawn == pytest.approx(smooth_ece(mixed, right))
    assert not any("smooth_ece" in r["metrics"] for r in results["rows"] if r["group"] != "all")


def test_draws_add_both_predictives_and_the_split(rows, results):
    found = metrics_of(results, "a", "samples")
    assert (
        found["nll_sequence"]["value"]
        < found["nll"]["value"]
        < metrics_of(results, "a", "mean")["nll"]["value"]
    )
    assert found["mutual_information"]["value"] == pytest.approx(0.2 * 5 / 4)  # independent draws, S = 5
    assert found["entropy"]["value"] - found["expected_entropy"]["value"] == pytest.approx(0.2)
    mirrored = [{**r, "antithetic": True} for r in rows if r["model"] == "a"]
    plain = metrics_of(compute_results(mirrored, num_bootstrap=5, num_samples=4), "a", "samples")
    assert plain["mutual_information"]["value"] == pytest.approx(0.2)
    unknown = compute_results([r for r in rows if r["model"] == "a"], num_bootstrap=5)
    assert "mutual_information" not in metrics_of(unknown, "a", "samples")


def test_intervals_resample_documents(rows, results):
    scores = [r["lm"] for r in rows if r["model"] == "a" and r["split"] == "test"]
    share = np.concatenate([s["correct"] for s in scores]).mean()
    tokens = sum(s["num_tokens"] for s in scores)
    if_independent = 2 * 1.96 * (share * (1 - share) / tokens) ** 0.5
    found = metrics_of(results, "a", "mean")["accuracy"]
    assert found["high"] - found["low"] > 1.3 * if_independent
    residual = np.array([sum(s["correct"]) - share * s["num_tokens"] for s in scores])
    clustered = 2 * 1.96 * np.sqrt((residual**2).sum()) / tokens
    assert found["high"] - found["low"] == pytest.approx(clustered, rel=0.2)


def test_comparison_detection_and_figures(results):
    [one] = [
        c
        for c in results["comparisons"]
        if (c["predictor"], c["group"], c["metric"]) == ("mean", "all", "nll")
    ]
    assert (one["a"], one["b"]) == ("b", "a") and one["difference"]["low"] > 0
    scores = {d["score"] for d in results["detection"] if d["model"] == "a" and d["predictor"] == "samples"}
    wanted = {"max_probability", "entropy", "expected_entropy", "mutual_information", "nll", "nll_sequence"}
    assert scores == wanted
    assert {f["model"] for f in results["figures"]["reliability"]} == {"a", "b"}
    assert results["figures"]["risk_coverage"] == [] and results["figures"]["mistakes"] == []
    assert {f["group"] for f in results["figures"]["entropy_mi"]} == {"stories", "odd"}


def test_mixed_records_are_refused(rows):
    choice = {
        "model": "c",
        "item": "x",
        "split": "test",
        "group": "g",
        "num_tokens": 1,
        "label": 0,
        "log_probs": [0.0],
    }
    with pytest.raises(DataError, match="some models have language-modelling records and others not"):
        compute_results([*rows, choice], num_samples=5)
    with pytest.raises(DataError, match="has no 'lm' part; are two tasks in one file"):
        compute_results([*rows, {**choice, "model": "a"}], num_samples=5)
    bare = {k: v for k, v in rows[40]["lm"].items() if "sample" not in k}
    with pytest.raises(DataError, match="only some records of model 'a' have posterior draws"):
        compute_results([*rows[:40], {**rows[40], "model": "a", "item": "new", "lm": bare}], num_samples=5)
