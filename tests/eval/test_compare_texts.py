"""Comparing texts: draws are resampled with the texts, jointly where both models have as many."""

import numpy as np
import pytest
from test_compare import by_metric, save

from vlora.eval.compare import compare_runs
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.crossed import draw_deviations, draw_weights
from vlora.eval.metrics.intervals import resample_counts
from vlora.recipes.compare import comparison_table

TEXTS, DRAWS, SPREAD = 30, 8, 0.05


def shifts(seed, draws=DRAWS):
    return SPREAD * np.random.default_rng(seed).normal(size=draws)


def model(name, moved, level=-1.0, seed=0, old=False, antithetic=False):
    """Texts whose draws all move log p of every token by their own amount; ``moved`` None is a plain adapter."""
    rng, rows = np.random.default_rng(seed), []
    sizes = np.random.default_rng(9).integers(4, 20, TEXTS)
    for i, size in enumerate(sizes.tolist()):
        at_mean = level + 0.2 * rng.normal(size=size)
        confidence = np.exp(at_mean).clip(0.05, 0.95)
        lm = {"num_tokens": size, "correct": [1] * size, "confidence": confidence.tolist()}
        lm |= {"entropy": (1 - confidence).tolist(), "nll": -at_mean.sum()}
        if moved is not None:
            by_draw = at_mean + moved[:, None]
            mixture = np.log(np.exp(by_draw).mean(0))
            whole = np.log(np.exp(by_draw.sum(1)).mean())
            lm |= {"nll_samples": -mixture.sum(), "nll_sequence": -whole, "sample_correct": [1] * size}
            lm |= {"sample_confidence": confidence.tolist(), "total_entropy": (1 - confidence).tolist()}
            lm |= {"expected_entropy": (0.9 - 0.9 * confidence).tolist()}
            if not old:
                lm |= {"nll_by_draw": (-by_draw.sum(1)).tolist(), "entropy_by_draw": [1.0] * len(moved)}
                lm |= {"weight_by_draw": np.exp(by_draw - mixture).sum(1).tolist()}
        head = {"model": name, "item": str(i), "split": "test", "group": "g", "num_tokens": 3}
        rows.append({**head, "antithetic": antithetic and moved is not None, "lm": lm})
    return rows


def compared(tmp_path, earlier, later, **options):
    runs = [save(tmp_path / "earlier", earlier), save(tmp_path / "later", later)]
    return compare_runs(runs, num_bootstrap=400, **options)


def test_every_number_is_that_of_texts_crossed_with_draws(tmp_path):
    """Literal transcription for whole texts: one set of draws, against a model without any."""
    later, earlier = model("ivon", shifts(1), level=-0.98, seed=1), model("adamw", None)
    found = compared(tmp_path, earlier, later)
    test = by_metric(found)["nll_sequence"]
    size = np.array([row["lm"]["num_tokens"] for row in later], float)
    own, other = (
        np.array([row["lm"][key] for row in rows])
        for key, rows in (("nll_sequence", later), ("nll", earlier))
    )
    counts = resample_counts(TEXTS, 400, (0, 0)).astype(float)
    items = counts @ (own - other) / (counts @ size)
    nll = np.array([row["lm"]["nll_by_draw"] for row in later])
    mixed = [-np.log(np.exp(-nll) @ w).sum() / size.sum() for w in draw_weights(DRAWS, 200)]
    moved = draw_deviations(mixed, DRAWS)
    low, high = np.quantile(items + np.resize(moved, 400), [0.025, 0.975])
    assert test["difference"] == pytest.approx((own - other).sum() / size.sum())
    assert (test["low"], test["high"]) == pytest.approx((low, high))
    assert test["item_error"] == pytest.approx(items.std(ddof=1))
    assert test["draw_error"] == pytest.approx(moved.std(ddof=1))
    assert found["pairs"][0]["draws"] == {"a": DRAWS, "b": 0, "paired": False}
    assert by_metric(found)["accuracy"]["draw_error"] is None
    assert "nll" in comparison_table(found).lower()


def test_the_error_of_draws_that_move_every_token_is_known(tmp_path):
    """Each draw moves the NLL per token by its shift, so S of them have the error sd / S^(1/2)."""
    moved = shifts(2)
    tests = by_metric(compared(tmp_path, model("adamw", None), model("ivon", moved, seed=1)))
    assert tests["nll"]["draw_error"] == pytest.approx(moved.std(ddof=1) / DRAWS**0.5, rel=0.15)


def test_shared_draws_cancel_and_others_do_not(tmp_path):
    """Draw k of both models has the same noise: what it does to both is no part of the difference."""
    moved = shifts(3)
    later = model("later", moved, level=-0.9, seed=1)
    joint = compared(tmp_path / "joint", model("earlier", moved), later)
    apart = compared(tmp_path / "apart", model("earlier", moved[:-1]), later)
    assert joint["pairs"][0]["draws"] == {"a": DRAWS, "b": DRAWS, "paired": True}
    assert apart["pairs"][0]["draws"] == {"a": DRAWS, "b": DRAWS - 1, "paired": False}
    for name in ("nll", "nll_sequence"):
        pair, single = by_metric(joint)[name], by_metric(apart)[name]
        assert pair["draw_error"] < 0.35 * single["draw_error"]
        assert pair["high"] - pair["low"] < single["high"] - single["low"]


def test_draws_that_it_takes(tmp_path):
    """Much spread of the draws hides a difference that the texts alone show; more draws would show it."""
    rows = model("adamw", None)
    wide = 5 * shifts(4)
    later = model("ivon", wide - np.log(np.exp(wide).mean()) + 0.06)
    test = by_metric(compared(tmp_path, rows, later))["nll"]
    assert test["low"] < 0 < test["high"] and test["item_error"] < 0.1 * test["draw_error"]
    assert DRAWS < test["draws_needed"] < 40 * DRAWS


def test_what_records_do_not_tell_has_no_error_of_draws(tmp_path):
    rows = model("adamw", None)
    cases = {
        "old": model("ivon", shifts(5), old=True),
        "pair": model("ivon", shifts(5, 2), antithetic=True),
        "single": model("ivon", shifts(5, 1)),
    }
    for name, later in cases.items():
        tests = by_metric(compared(tmp_path / name, rows, later))
        assert {tests[key]["draw_error"] for key in ("nll", "nll_sequence")} == {None}, name
        assert all(test["low"] <= test["difference"] <= test["high"] for test in tests.values())
    both = by_metric(compared(tmp_path / "both", model("one", shifts(6), old=True), model("two", shifts(5))))
    assert both["nll"]["draw_error"] is None  # half of what the draws add would say too little
    mean = by_metric(compared(tmp_path / "mean", rows, model("ivon", shifts(5)), predictor="mean"))
    assert mean["nll"]["draw_error"] is None


def test_the_calibration_error_of_tokens_is_resampled_by_texts(tmp_path):
    """Literal: the ECE of all tokens of a resample's texts, of either model."""
    later, earlier = model("ivon", shifts(1), level=-0.9, seed=1), model("adamw", None, level=-0.4)
    test = by_metric(compared(tmp_path, earlier, later))["ece_15_equal_width"]

    def error(rows, name, chosen):
        sure = np.concatenate([rows[i]["lm"][name] for i in chosen])
        return calibration(sure, np.ones(len(sure))).ece

    sides = ((later, "sample_confidence"), (earlier, "confidence"))
    assert [test[side] for side in "ab"] == pytest.approx([error(*one, range(TEXTS)) for one in sides])
    resampled = [np.repeat(np.arange(TEXTS), row) for row in resample_counts(TEXTS, 400, (0, 0))]
    differences = np.array([error(*sides[0], chosen) - error(*sides[1], chosen) for chosen in resampled])
    assert test["item_error"] == pytest.approx(differences.std(ddof=1))
    assert (test["low"], test["high"]) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert test["higher_is_better"] is False and test["draw_error"] is None
