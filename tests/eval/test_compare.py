"""Comparing runs: each test against its definition, pairing by items and by draws, and what is refused."""

import numpy as np
import pytest
from test_results import make_model

from vlora.errors import DataError
from vlora.eval.compare import compare_runs
from vlora.eval.compare_parts import mcnemar_fields
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.delong import compare_auroc
from vlora.eval.metrics.draw_temperature import fit_draw_temperature, temper_draws
from vlora.eval.metrics.paired_tests import holm, mcnemar
from vlora.eval.metrics.proper_scores import brier_score, correctness, negative_log_likelihood
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.sample_size import items_for_accuracy
from vlora.eval.metrics.selective import augrc, aurc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs
from vlora.eval.records import write_records
from vlora.recipes.compare import comparison_table


def save(folder, *models):
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", [row for rows in models for row in rows])
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    before = save(folder / "before", make_model("adamw", 3.0, draws=0, seed=1))
    after = save(folder / "after", make_model("ivon", 0.3, seed=2))
    return before, after


def by_metric(found, pair=0):
    return {test["metric"]: test for test in found["pairs"][pair]["tests"]}


def test_every_number_is_that_of_its_test(runs):
    found = compare_runs(runs, num_bootstrap=500)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"]) == ("after:ivon", "before:adamw") and pair["n"] == 110
    assert (pair["predictor_a"], pair["predictor_b"]) == ("samples", "mean")
    assert pair["draws"] == {"a": 4, "b": 0, "paired": False}
    rows = [r for r in make_model("ivon", 0.3, seed=2) if r["group"] in ("easy", "hard")]
    label = [row["label"] for row in rows]
    ours = mixture_log_probs(np.array([row["sample_log_probs"] for row in rows]).swapaxes(0, 1))
    other = make_model("adamw", 3.0, draws=0, seed=1)
    theirs = np.array([row["log_probs"] for row in other if row["group"] in ("easy", "hard")])
    tests = by_metric(found)
    right = [correctness(log_probs, label) for log_probs in (ours, theirs)]
    exact = mcnemar(*right)
    assert tests["accuracy"]["p"] == exact.p_value and tests["accuracy"]["only_a"] == exact.only_a
    assert tests["accuracy"]["difference"] == pytest.approx(right[0].mean() - right[1].mean())
    needed = items_for_accuracy((exact.only_a + exact.only_b) / 110, abs(tests["accuracy"]["difference"]))
    assert tests["accuracy"]["items_needed"] == needed
    loss = [negative_log_likelihood(log_probs, label).per_item for log_probs in (ours, theirs)]
    assert tests["nll"]["difference"] == pytest.approx((loss[0] - loss[1]).mean())
    assert tests["nll"]["item_error"] == pytest.approx((loss[0] - loss[1]).std(ddof=1) / 110**0.5, rel=0.1)
    assert tests["nll"]["draw_error"] > 0
    assert tests["nll"]["better"] == "after:ivon"  # a tenth of the noise, four draws
    all_rows = [r for r in make_model("ivon", 0.3, seed=2) if r["group"] in ("easy", "hard", "unknown")]
    odd = np.array([row["group"] == "unknown" for row in all_rows], dtype=float)
    mixed = mixture_log_probs(np.array([row["sample_log_probs"] for row in all_rows]).swapaxes(0, 1))
    at_mean = np.array([r["log_probs"] for r in other if r["group"] in ("easy", "hard", "unknown")])
    test = tests["auroc entropy: unknown vs test"]
    delong = compare_auroc(entropy(mixed), entropy(at_mean), odd, draw_error=test["draw_error"])
    assert (test["p"], test["difference"]) == pytest.approx((delong.p_value, delong.difference))
    assert "auroc mutual_information: unknown vs test" not in tests  # only one of them has draws


def test_holm_is_over_all_tests(runs):
    found = compare_runs(runs, num_bootstrap=100)
    tests = found["pairs"][0]["tests"]
    assert found["family"] == len(tests) == 9
    adjusted = holm([test["p"] for test in tests])
    assert [test["p_holm"] for test in tests] == pytest.approx(adjusted.tolist())
    for test in tests:
        assert (test["better"] is not None) == (test["p_holm"] <= 0.05 and test["difference"] != 0)


def test_a_run_against_itself_shows_nothing(runs, tmp_path):
    copy = save(tmp_path / "copy", make_model("ivon", 0.3, seed=2))
    (pair,) = compare_runs([runs[1], copy], num_bootstrap=100)["pairs"]
    assert pair["draws"] == {"a": 4, "b": 4, "paired": True}
    for test in pair["tests"]:
        assert test["difference"] == 0 and test["p"] == 1.0 and test["better"] is None
        assert test["items_needed"] is None and test["draws_needed"] is None
        assert test["draw_error"] in (0, None)


def test_pairing_draws_removes_what_they_share(tmp_path):
    """Two models whose draws are the same up to a constant: jointly resampled draws cancel, apart they do not."""
    rows = make_model("m", 0.3, seed=3)
    shifted = []
    for row in rows:
        samples = np.array(row["sample_log_probs"]) * 0.9
        samples -= np.log(np.exp(samples).sum(1, keepdims=True))
        shifted.append({**row, "sample_log_probs": samples.tolist()})
    other = [{**row, "sample_log_probs": row["sample_log_probs"][:3]} for row in shifted]
    base = save(tmp_path / "a", rows)
    joint = compare_runs([base, save(tmp_path / "b", shifted)], num_bootstrap=100)
    apart = compare_runs([base, save(tmp_path / "c", other)], num_bootstrap=100)
    assert by_metric(joint)["nll"]["draw_error"] < 0.4 * by_metric(apart)["nll"]["draw_error"]


def test_models_of_one_run_and_runs_of_several_models(tmp_path):
    first = save(tmp_path / "x", make_model("p", 1.0, draws=0, seed=1), make_model("q", 0.5, seed=2))
    second = save(tmp_path / "y", make_model("p", 0.9, draws=0, seed=3), make_model("q", 0.4, seed=4))
    inside = compare_runs([first], num_bootstrap=30)
    assert [(pair["a"], pair["b"]) for pair in inside["pairs"]] == [("x:q", "x:p")]
    across = compare_runs([first, second], num_bootstrap=30)
    assert [(pair["a"], pair["b"]) for pair in across["pairs"]] == [("y:p", "x:p"), ("y:q", "x:q")]
    picked = compare_runs([f"{first}:q", f"{second}:p"], num_bootstrap=30, predictor="mean+temperature")
    assert [(p["a"], p["b"], p["predictor_a"]) for p in picked["pairs"]] == [
        ("y:p", "x:q", "mean+temperature")
    ]


def test_tasks_are_one_family(tmp_path):
    for run, seed in (("old", 1), ("new", 5)):
        for task in ("arc", "boolq"):
            save(tmp_path / run / task, make_model("m", 1.0, draws=0, seed=seed))
    found = compare_runs([str(tmp_path / "old"), str(tmp_path / "new")], num_bootstrap=30)
    assert [pair["task"] for pair in found["pairs"]] == ["arc", "boolq"] and found["family"] == 18
    save(tmp_path / "new" / "extra", make_model("m", 1.0, draws=0))
    with pytest.raises(DataError, match="task 'extra' is missing from .*old"):
        compare_runs([str(tmp_path / "old"), str(tmp_path / "new")], num_bootstrap=30)


def test_other_items_are_refused_by_name(runs, tmp_path):
    rows = make_model("m", 1.0, draws=0)
    fewer = save(tmp_path / "fewer", rows[:-1])
    with pytest.raises(DataError, match=r"the items differ: 1 only in before:adamw \(first ood/219\)"):
        compare_runs([runs[0], fewer])
    other = [{**row, "text": "another"} if row["item"] == "test/70" else row for row in rows]
    with pytest.raises(
        DataError, match=r"test/70 has another text \(its beginning\) in other:m than in before:adamw"
    ):
        compare_runs([runs[0], save(tmp_path / "other", other)])
    relabelled = [
        {**row, "label": (row["label"] + 1) % 3} if row["item"] == "test/70" else row for row in rows
    ]
    with pytest.raises(DataError, match="test/70 has another label"):
        compare_runs([runs[0], save(tmp_path / "labels", relabelled)])


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([runs[0]], "there is nothing to compare"),
        ([str(tmp_path / "none"), runs[0]], "none is not a folder"),
        ([str(tmp_path / "empty"), runs[0]], "holds no records.jsonl, nor does a folder in it"),
        ([f"{runs[0]}:x", runs[1]], "holds no model 'x'"),
        ([runs[0], runs[0]], "before:adamw is given twice"),
    ):
        with pytest.raises(DataError, match=message):
            compare_runs(arguments, num_bootstrap=10)
    with pytest.raises(DataError, match="predictor must be one of"):
        compare_runs(runs, predictor="best")
    with pytest.raises(DataError, match="level must lie between 0 and 1"):
        compare_runs(runs, level=5)


def test_language_modelling_is_compared_by_documents(tmp_path):
    from test_results_tokens import make_model as make_texts

    one, two = make_texts("a"), make_texts("b")
    found = compare_runs([save(tmp_path / "one", one), save(tmp_path / "two", two)], num_bootstrap=50)
    assert {test["metric"] for test in found["pairs"][0]["tests"]} >= {"nll", "accuracy"}
    assert all(test["difference"] == 0 for test in found["pairs"][0]["tests"])


@pytest.mark.parametrize("size", [7, 35, 110])
def test_one_model_may_win_every_discordant_item_by_a_residue(size):
    """The means of a and b are floats, whose difference may lie above the share of discordant items."""
    for wins in range(1, size // 2):
        b = (np.arange(size) < size // 2).astype(float)
        a = b + (np.arange(size) >= size - wins)
        for one, other, sign in ((a, b, 1), (b, a, -1)):
            found = mcnemar_fields(one, other)
            assert found["difference"] == sign * wins / size
            assert found["items_needed"] == items_for_accuracy(wins / size, wins / size)
    even = mcnemar_fields(np.array([1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0]))
    assert (even["difference"], even["items_needed"], even["p"]) == (0.0, None, 1.0)


def test_texts_are_told_apart_by_their_hash_where_both_runs_have_it(runs, tmp_path, caplog):
    """Prompts that end alike are shown alike; runs of earlier versions hold a beginning and no hash."""
    hashed = [{**row, "text_sha256": row["item"]} for row in make_model("m", 1.0, draws=0)]
    new = save(tmp_path / "new", hashed)
    shown = save(tmp_path / "shown", [{**row, "text": "…" + row["text"]} for row in hashed])
    assert compare_runs([new, shown], num_bootstrap=30)["pairs"][0]["n"] == 110
    assert not caplog.records
    other = [{**row, "text_sha256": "x"} if row["item"] == "test/70" else row for row in hashed]
    with pytest.raises(DataError, match="test/70 has another text in other:m than in new:m"):
        compare_runs([new, save(tmp_path / "other", other)])
    compare_runs([runs[0], shown], num_bootstrap=30)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(
        "shown:m and before:adamw: one was written by an earlier vlora, so the texts of 160 "
    )


@pytest.mark.parametrize("predictor", ["linearised", "linearised+temperature"])
def test_a_model_without_the_linearised_predictor_stands_with_its_mean(runs, tmp_path, predictor):
    rows = make_model("ivon", 0.3, seed=2)
    wide = [{**row, "linearised_covariance": (0.5 * np.eye(3)).tolist()} for row in rows]
    found = compare_runs([runs[0], save(tmp_path / "wide", wide)], predictor=predictor, num_bootstrap=30)
    (pair,) = found["pairs"]
    at_mean = predictor.replace("linearised", "mean")
    assert (pair["predictor_a"], pair["predictor_b"], pair["wanted"]) == (predictor, at_mean, predictor)
    (mean,) = compare_runs([runs[0], runs[1]], predictor=at_mean, num_bootstrap=30)["pairs"]
    ours, theirs = ({test["metric"]: test for test in one["tests"]} for one in (pair, mean))
    assert ours["nll"]["b"] == theirs["nll"]["b"] and ours["nll"]["a"] != theirs["nll"]["a"]
    assert f"wide:ivon - before:adamw: {predictor} against mean" in comparison_table(found)
    assert f" (no {predictor})" in comparison_table(found)
    with pytest.raises(
        DataError, match="no model has the predictor 'linearised.*; evaluate a posterior with lin"
    ):
        compare_runs(runs, predictor=predictor, num_bootstrap=30)


def test_tempered_draws_stand_against_the_tempered_mean_of_a_model_without(runs):
    wanted = "samples+draw_temperature"
    (pair,) = compare_runs(runs[:2], predictor=wanted, num_bootstrap=30)["pairs"]
    assert (pair["predictor_a"], pair["predictor_b"], pair["wanted"]) == (wanted, "mean+temperature", wanted)


def predicted(rows, predictor, temperature, draws):
    """Log-probabilities of the test rows when these draws had been taken, at a temperature that stays as it was."""
    samples = np.array([row["sample_log_probs"] for row in rows]).swapaxes(0, 1)[draws]
    if predictor == "samples+draw_temperature":
        samples = temper_draws(samples, temperature)
    found = mixture_log_probs(samples)
    return temper(found, temperature) if predictor == "samples+temperature" else found


def headline(log_probs, label):
    right, sure = correctness(log_probs, label), np.exp(log_probs.max(axis=1))
    return {
        "accuracy": right.mean(),
        "nll": negative_log_likelihood(log_probs, label).per_item.mean(),
        "brier": brier_score(log_probs, label).mean(),
        "ece_15_equal_width": calibration(sure, right).ece,
        "auroc_correctness": auroc(sure, right),
        "aurc": aurc(-sure, right),
        "augrc": augrc(-sure, right),
    }


@pytest.mark.parametrize("other", [4, 6, 0])
@pytest.mark.parametrize("predictor", ["samples", "samples+temperature", "samples+draw_temperature"])
def test_draws_at_a_temperature_are_resampled_as_they_are(tmp_path, predictor, other):
    """A literal bootstrap over draws: repeat those that a resample took, make the predictor, take its metrics."""
    models = [make_model("a", 0.3, seed=2), make_model("b", 0.6, draws=other, seed=4)]
    folders = [save(tmp_path / row[0]["model"], row) for row in models]
    (pair,) = compare_runs(folders[::-1], predictor=predictor, num_bootstrap=40, seed=5)["pairs"]
    assert pair["draws"] == {"a": 4, "b": other, "paired": other == 4}
    total = 0.0
    for place, (rows, size) in enumerate(zip(models, (4, other), strict=True)):
        if not size:
            continue
        held = [row for row in rows if row["split"] == "validation"]
        samples = np.array([row["sample_log_probs"] for row in held]).swapaxes(0, 1)
        truth = [row["label"] for row in held]
        temperature = {
            "samples": 1.0,
            "samples+temperature": fit_temperature(mixture_log_probs(samples), truth).temperature,
            "samples+draw_temperature": fit_draw_temperature(samples, truth).temperature,
        }[predictor]
        test = [row for row in rows if row["group"] in ("easy", "hard")]
        label, numbers = [row["label"] for row in test], []
        for weights in draw_weights(size, 200, seed=5 + (0 if other == 4 else place)):
            chosen = np.repeat(np.arange(size), np.round(weights * size).astype(int))
            numbers.append(list(headline(predicted(test, predictor, temperature, chosen), label).values()))
        moved = (np.array(numbers) - np.mean(numbers, axis=0)) * (size / (size - 1)) ** 0.5
        total = total + (1 - 2 * place) * moved
        side = headline(predicted(test, predictor, temperature, np.arange(size)), label)
        for name, value in side.items():
            assert by_metric({"pairs": [pair]})[name]["ab"[place]] == pytest.approx(value, abs=1e-9)
    tests = by_metric({"pairs": [pair]})
    for name, error in zip(side, np.std(total, axis=0, ddof=1), strict=True):
        assert tests[name]["draw_error"] == pytest.approx(error, rel=1e-6), name
    assert tests["nll"]["high"] - tests["nll"]["low"] > 2.5 * tests["nll"]["draw_error"] > 0
