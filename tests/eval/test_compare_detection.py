"""Telling groups apart, model against model: the questions of the run, and another score on either side."""

from statistics import NormalDist

import numpy as np
import pytest
from test_results import make_model
from test_results_tokens import make_model as make_texts

from vlora.errors import DataError
from vlora.eval.compare_detection import score_sides
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.draw_temperature import fit_draw_temperature, temper_draws
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.sample_size import draws_for_width
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information
from vlora.eval.records import write_records
from vlora.eval.results import compute_results, write_results
from vlora.recipes.compare import compare_runs, comparison_table, write_comparison

DETECT = {"unknown vs ambiguous": {"positive": ["unknown"], "negative": ["ambiguous"]}}
PAIR = "entropy:mutual_information"
QUESTION = "unknown vs ambiguous"


def save(folder, rows, detect=None):
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", rows)
    results = compute_results(rows, num_bootstrap=5, num_samples=4, settings={"detect": detect or {}})
    write_results(folder / "results.json", results)
    return str(folder)


@pytest.fixture(scope="module")
def rows():
    return make_model("adamw", 3.0, draws=0, seed=1), make_model("ivon", 0.3, seed=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("runs")
    return save(folder / "before", rows[0], DETECT), save(folder / "after", rows[1])


def areas(found, pair=0):
    return {t["metric"]: t for t in found["pairs"][pair]["tests"] if t["metric"].startswith("auroc ")}


def of_group(rows, group):
    return [row for row in rows if row["group"] == group]


def information(rows):
    samples = np.array([row["sample_log_probs"] for row in rows]).swapaxes(0, 1)
    return mutual_information(samples), entropy(mixture_log_probs(samples))


def delong(ours, theirs, draw_error=0.0):
    """DeLong et al. 1988 by its definition: every pair of a positive and a negative item, one after another.

    The variance that draws add to the difference joins its own.
    """
    v10, v01 = [], []
    for positive, negative in (ours, theirs):
        wins = np.array([[float(p > n) + 0.5 * float(p == n) for n in negative] for p in positive])
        v10.append(wins.mean(axis=1))
        v01.append(wins.mean(axis=0))
    first, second = np.cov(np.stack(v10)), np.cov(np.stack(v01))
    covariance = first / len(v10[0]) + second / len(v01[0])
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(contrast @ covariance @ contrast))
    values = [float(one.mean()) for one in v10]
    p = 2 * NormalDist().cdf(-abs(values[0] - values[1]) / np.hypot(error, draw_error))
    return values, error, p


def on_draws(rows, of, seed=0, units=4):
    """AUROC of a score of the draws between two groups: those of every resample taken as if there were no others."""
    samples, places = zip(
        *(
            (np.array([row["sample_log_probs"] for row in own]).swapaxes(0, 1), np.full(len(own), place))
            for place, own in ((1.0, of_group(rows, "unknown")), (0.0, of_group(rows, "ambiguous")))
        ),
        strict=True,
    )
    every, positive = np.concatenate(samples, axis=1), np.concatenate(places)
    found = []
    for weights in draw_weights(units, 40, seed=seed):
        chosen = np.repeat(np.arange(units), np.round(weights * units).astype(int))
        found.append(auroc(of(every[chosen]), positive))
    return (np.array(found) - np.mean(found)) * (units / (units - 1)) ** 0.5


def test_information_of_one_model_against_entropy_of_the_other(runs, rows):
    """Literal transcription, for the question that the run asked: which score of which model finds the unknown?"""
    found = compare_runs(runs, scores=[PAIR], num_bootstrap=50)
    ((metric, test),) = areas(found).items()
    assert metric == f"auroc {PAIR}: {QUESTION}" and test["test"] == "DeLong"
    assert test["scores"] == {"a": "mutual_information", "b": "entropy"}
    ours = [information(of_group(rows[1], group))[0] for group in ("unknown", "ambiguous")]
    theirs = [
        entropy(np.array([row["log_probs"] for row in of_group(rows[0], group)]))
        for group in ("unknown", "ambiguous")
    ]
    draw_error = np.std(on_draws(rows[1], mutual_information), ddof=1)
    values, error, p = delong(ours, theirs, draw_error)
    assert [test["a"], test["b"]] == pytest.approx(values)
    assert test["difference"] == pytest.approx(values[0] - values[1])
    assert (test["item_error"], test["draw_error"], test["p"]) == pytest.approx((error, draw_error, p))
    half = NormalDist().inv_cdf(0.975) * np.hypot(error, draw_error)
    assert (test["low"], test["high"]) == pytest.approx(
        (test["difference"] - half, test["difference"] + half)
    )
    assert len(found["pairs"][0]["tests"]) == found["family"] == 8  # seven of the headline and this one
    name = "AUROC of mutual information against entropy"
    assert f"{name}: {QUESTION}" in comparison_table(found)


def test_the_questions_of_the_run_are_asked(runs, rows, tmp_path):
    found = areas(compare_runs(runs, num_bootstrap=20))
    assert {name.partition(": ")[2] for name in found} == {QUESTION}
    ours = [information(of_group(rows[1], group))[1] for group in ("unknown", "ambiguous")]
    theirs = [
        entropy(np.array([row["log_probs"] for row in of_group(rows[0], group)]))
        for group in ("unknown", "ambiguous")
    ]
    draw_error = np.std(on_draws(rows[1], lambda draws: entropy(mixture_log_probs(draws))), ddof=1)
    values, error, p = delong(ours, theirs, draw_error)
    test = found[f"auroc entropy: {QUESTION}"]
    assert [test["a"], test["b"], test["item_error"], test["p"]] == pytest.approx([*values, error, p])
    assert "scores" not in test
    turned = compare_runs(
        runs[::-1], num_bootstrap=20
    )  # the earlier run asked nothing: those of the later count
    assert {name.partition(": ")[2] for name in areas(turned)} == {QUESTION}
    plain = save(tmp_path / "plain", rows[0])
    asked = {name.partition(": ")[2] for name in areas(compare_runs([plain, runs[1]], num_bootstrap=20))}
    assert asked == {"unknown vs test"}  # nobody asked: out-of-distribution rows against the test rows
    other = {"x": {"positive": ["unknown"], "negative": ["nobody"]}}
    with pytest.raises(DataError, match="detect 'x' negative: expected a list of groups out of easy, hard"):
        compare_runs([save(tmp_path / "odd", rows[0], other), runs[1]], num_bootstrap=20)


@pytest.mark.parametrize("other", [4, 6])
@pytest.mark.parametrize("predictor", ["samples", "samples+draw_temperature"])
def test_areas_of_two_models_with_draws(tmp_path, other, predictor):
    """Equally many draws are resampled jointly, others apart; a temperature stays as it was fitted."""
    models = [make_model("a", 0.3, seed=2), make_model("b", 0.5, draws=other, seed=4)]
    runs = [save(tmp_path / own[0]["model"], own, DETECT) for own in models]
    found = areas(compare_runs(runs[::-1], predictor=predictor, num_bootstrap=20, seed=3))
    test = found[f"auroc mutual_information: {QUESTION}"]
    parts = []
    for place, (own, size) in enumerate(zip(models, (4, other), strict=True)):
        held = of_group(own, "validation")
        samples = np.array([row["sample_log_probs"] for row in held]).swapaxes(0, 1)
        fitted = fit_draw_temperature(samples, [row["label"] for row in held]).temperature
        temperature = fitted if "+" in predictor else 1.0

        def information_at(draws, temperature=temperature):
            return mutual_information(temper_draws(draws, temperature))

        parts.append(on_draws(own, information_at, 3 + (0 if other == 4 else place), size))
    draw_error = np.std(parts[0] - parts[1], ddof=1)
    assert test["draw_error"] == pytest.approx(draw_error, rel=1e-9)
    needed = draws_for_width(abs(test["difference"]), draw_error, 4, test["item_error"])
    assert test["draws_needed"] == needed
    total = np.hypot(test["item_error"], draw_error)
    assert test["p"] == pytest.approx(2 * NormalDist().cdf(-abs(test["difference"]) / total))


def test_draws_in_common_cancel(tmp_path):
    """A model against itself has no error of draws; with one draw, or one mirrored pair, there is none to tell."""
    own = make_model("a", 0.3, seed=2)
    for number, rows in enumerate(
        (own, [{**row, "sample_log_probs": row["sample_log_probs"][:1]} for row in own])
    ):
        sides = [save(tmp_path / f"{name}{number}", rows, DETECT) for name in ("x", "y")]
        test = areas(compare_runs(sides, scores=["entropy"], num_bootstrap=20))[f"auroc entropy: {QUESTION}"]
        assert (test["difference"], test["p"], test["draws_needed"]) == (0, 1, None)
        assert test["draw_error"] == (0 if not number else None)


def test_scores_are_named_for_both_or_for_either(runs, tmp_path):
    one = areas(compare_runs(runs, scores=["entropy", "max_probability"], num_bootstrap=20))
    assert list(one) == [f"auroc {name}: {QUESTION}" for name in ("entropy", "max_probability")]
    every = areas(compare_runs(runs, num_bootstrap=20))
    both = areas(compare_runs(runs, scores=["all", PAIR], num_bootstrap=20))
    assert list(both) == [*every, f"auroc {PAIR}: {QUESTION}"]
    assert all(both[name]["p"] == test["p"] for name, test in every.items())
    same = areas(compare_runs(runs, scores=["entropy:entropy"], num_bootstrap=20))
    assert same[f"auroc entropy:entropy: {QUESTION}"]["p"] == one[f"auroc entropy: {QUESTION}"]["p"]
    page = write_comparison(
        compare_runs(runs, scores=[PAIR], num_bootstrap=20), tmp_path / "c.html"
    ).read_text()
    assert "AUROC of mutual information against entropy" in page
    assert score_sides("entropy") == ("entropy", "entropy") and score_sides("a:b") == ("b", "a")


def test_texts_are_told_apart_too(tmp_path):
    rows = [make_texts("m", shift) for shift in (0.0, 0.5)]
    runs = [save(tmp_path / name, own) for name, own in zip(("one", "two"), rows, strict=True)]
    ((metric, test),) = areas(compare_runs(runs, scores=["entropy"], num_bootstrap=20)).items()
    entropies = {
        group: np.array([np.mean(row["lm"]["total_entropy"]) for row in of_group(rows[0], group)])
        for group in ("odd", "stories")
    }
    expected = (entropies["odd"][:, None] > entropies["stories"]).mean()
    assert metric == "auroc entropy: odd vs test" and test["a"] == test["b"] == pytest.approx(expected)
    assert test["draw_error"] is None  # records do not hold the entropy of other mixtures


def test_what_cannot_be_told_is_one_line(runs, rows, tmp_path):
    with pytest.raises(
        DataError,
        match=r"--score mutual_information: adamw \(mean\) has no score .*, only .*; to set .* name both",
    ):
        compare_runs(runs, scores=["mutual_information"], num_bootstrap=20)
    with pytest.raises(DataError, match=r"--score entropy:best: ivon \(samples\) has no score 'best'"):
        compare_runs(runs, scores=["entropy:best"], num_bootstrap=20)
    known = [[row for row in own if row["group"] != "unknown"] for own in rows]
    plain = [save(tmp_path / name, own) for name, own in zip(("a", "b"), known, strict=True)]
    with pytest.raises(DataError, match="--score needs groups to tell apart, and these runs hold none"):
        compare_runs(plain, scores=["entropy"], num_bootstrap=20)


def test_further_divergences_of_the_draws_are_tested_when_named(rows, tmp_path):
    """They say nearly what the information says, and every test makes the others stricter."""
    sides = [save(tmp_path / name, rows[1]) for name in ("one", "two")]
    further = {
        f"auroc {name}: unknown vs test" for name in ("reverse_mutual_information", "expected_pairwise_kl")
    }
    assert not further & set(areas(compare_runs(sides, num_bootstrap=20)))
    assert further < set(areas(compare_runs(sides, scores=["all"], num_bootstrap=20)))
    named = areas(compare_runs(sides, scores=["expected_pairwise_kl"], num_bootstrap=20))
    assert set(named) == {"auroc expected_pairwise_kl: unknown vs test"}
