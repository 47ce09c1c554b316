"""The error of draws in what they say of the judged answer: literal resamples, pairs, and new sets of draws."""

from dataclasses import replace

import numpy as np
import pytest
from test_answer_estimators import record

from vlora.eval.generation.answer_draws import DRAWN_CONFIDENCES, DRAWN_SCORES, AnswerDraws
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.estimators import confidences, item_scores
from vlora.eval.generation.report import render_answer_report
from vlora.eval.generation.results import compute_answer_results
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.ranking import auroc, average_precision
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import accuracy_at_coverage, aurc

S, NUMBER, RESAMPLES = 6, 60, 200


def answers(seed=0, *, draws=S, model="m", antithetic=False, given=False):
    """Test, validation and unknown questions; what a draw says of all of them moves together."""
    rng = np.random.default_rng(seed)
    right = (rng.random(NUMBER) < 0.6).astype(float)
    level = np.log1p(np.exp(rng.normal(1.5 - 2 * right, 1.0)))
    slope, moved = rng.normal(0, 0.5, NUMBER), rng.normal(0, 1, draws)
    nll = level[:, None] * np.exp(slope[:, None] * moved + 0.1 * rng.normal(size=(NUMBER, draws)))
    entropy, sure = 0.3 * nll + 0.1, np.exp(-0.5 * nll)
    base = record()
    parts = [("test", "all")] * 35 + [("validation", "validation")] * 15 + [("ood", "nobody")] * 10
    return [
        replace(
            base, model=model, item=f"{split}/{number}", split=split, group=group, antithetic=antithetic,
            samples=[], pool=base.pool[:1], measured={}, correct=None if split == "ood" else float(right[number]),
            answer=replace(
                base.answer, given=given, log_probs=[-level[number] / 2] * 2, draw_log_probs=(-nll[number]).tolist(),
                draw_entropies=entropy[number].tolist(), draw_p_true=sure[number].tolist(),
            ),
        )
        for number, (split, group) in enumerate(parts)
    ]  # fmt: skip


def resampled(rows, weights):
    """Records with every draw as often as a resample took it."""
    chosen = [draw for draw, w in enumerate(weights) for _ in range(round(w * len(weights)))]

    def taken(answer):
        lists = ("draw_log_probs", "draw_entropies", "draw_p_true")
        return {name: [own[draw] for draw in chosen] for name in lists if (own := getattr(answer, name))}

    return [replace(r, answer=replace(r.answer, **taken(r.answer))) for r in rows]


def row(results, section, **wanted):
    (found,) = [r for r in results[section] if all(r[k] == v for k, v in wanted.items())]
    return found


def literal_error(values, units=S):
    """Standard deviation of the replicates, with what resampled draws lack."""
    return np.std(values, ddof=1) * (units / (units - 1)) ** 0.5


@pytest.mark.parametrize("antithetic", [False, True])
def test_resampled_scores_are_the_estimators_of_the_resampled_draws(antithetic):
    """Transcribed literally: the draws of a resample go through the estimators as if they had been taken."""
    rows = answers(antithetic=antithetic)
    rows[3] = replace(rows[3], answer=replace(rows[3].answer, draw_p_true=[]))
    rows[4] = replace(
        rows[4], answer=replace(rows[4].answer, draw_log_probs=[-np.inf, *rows[4].answer.draw_log_probs[1:]])
    )
    draws = AnswerDraws.of("m", rows)
    weights = draws.weights(seed=7)
    assert weights.tolist() == draw_weights(S, RESAMPLES, antithetic=antithetic, seed=7).tolist()
    every = np.arange(len(rows))
    scores = {name: draws.scores(name, every, weights) for name in DRAWN_SCORES}
    sure = {name: draws.confidence(name, every, weights) for name in DRAWN_CONFIDENCES}
    for number in (0, 1, 17, 199):
        again = resampled(rows, weights[number])
        for place, one in enumerate(again):
            wanted, certain = item_scores(one), confidences(one)
            for name, found in scores.items():
                assert found[number, place] == pytest.approx(wanted.get(name, np.inf), abs=1e-9), name
            for name, found in sure.items():
                if name == "mixture" or one.answer.draw_p_true:
                    assert found[number, place] == pytest.approx(certain[name], abs=1e-12)
    assert np.isinf(scores["p_true_draws"][:, 3]).all() and (sure["p_true"][:, 3] == 0).all()
    assert np.isinf(scores["reverse_information"][:, 4]).any()
    assert np.isfinite(
        scores["reverse_information"][:, 4]
    ).any()  # resamples without the draw that rules it out


@pytest.mark.parametrize("antithetic", [False, True])
def test_errors_of_draws_in_results_are_those_of_the_metrics(antithetic):
    rows = answers(antithetic=antithetic)
    units = S // 2 if antithetic else S
    results = compute_answer_results(rows, num_bootstrap=100, threshold=0.3, seed=3)
    measures = {
        "auroc": lambda u, c: auroc(u, 1 - c),
        "aupr": lambda u, c: average_precision(u, 1 - c),
        "prr": prediction_rejection_ratio,
        "aurc": aurc,
        "accuracy_at_80": lambda u, c: accuracy_at_coverage(u, c, 0.8),
    }
    correct = np.array([r.correct for r in rows[:35]])
    truth = [r.correct for r in rows[35:50]]
    sets = [resampled(rows, w) for w in draw_weights(S, RESAMPLES, antithetic=antithetic, seed=3)]
    found = row(results, "estimators", estimator="reverse_information", group="all")["metrics"]
    scores = [np.array([item_scores(r)["reverse_information"] for r in one]) for one in sets]
    for name, measure in measures.items():
        wanted = literal_error([measure(values[:35], correct) for values in scores], units)
        assert found[name]["draw_error"] == pytest.approx(wanted, rel=1e-9), name
        assert found[name]["crossed_low"] <= found[name]["low"] + 0.05
    between = [auroc(np.r_[v[50:], v[:35]], [1] * 10 + [0] * 35) for v in scores]
    test = row(results, "detection", estimator="reverse_information")["auroc"]
    assert test["draw_error"] == pytest.approx(literal_error(between, units), rel=1e-9)
    calibrated = row(results, "confidences", confidence="mixture+temperature", group="all")["metrics"]
    errors: dict[str, list[float]] = {"brier": [], "ece_15_equal_width": [], "answered": []}
    for one in sets:
        power = fit_power([confidences(r)["mixture"] for r in one[35:50]], truth)
        own = sharpen([confidences(r)["mixture"] for r in one[:35]], power)
        errors["brier"].append(float(np.mean((own - correct) ** 2)))
        errors["ece_15_equal_width"].append(calibration(own, correct).ece)
        errors["answered"].append(float(np.mean(own >= 0.3)))
    for name, values in errors.items():
        assert calibrated[name]["draw_error"] == pytest.approx(literal_error(values, units), rel=1e-9), name
        wide = calibrated[name]["crossed_high"] - calibrated[name]["crossed_low"]
        assert wide >= 0.9 * (calibrated[name]["high"] - calibrated[name]["low"])


def test_only_what_draws_make_has_their_error():
    results = compute_answer_results(answers(), num_bootstrap=20)
    for section, key in (
        ("estimators", "estimator"),
        ("confidences", "confidence"),
        ("detection", "estimator"),
    ):
        for one in results[section]:
            name = one[key].removesuffix("+temperature")
            drawn = name in (DRAWN_CONFIDENCES if section == "confidences" else DRAWN_SCORES)
            numbers = one["metrics"] if "metrics" in one else {"auroc": one["auroc"]}
            assert {"draw_error" in n for k, n in numbers.items() if k != "ece_floor"} == {drawn}, one[key]
    assert not any("draw_error" in n for one in results["answers"] for n in one["metrics"].values())


def test_one_unit_has_no_error_and_says_so():
    results = compute_answer_results(answers(draws=2, antithetic=True), num_bootstrap=20)
    found = row(results, "estimators", estimator="mixture", group="all")["metrics"]["auroc"]
    assert (found["draw_error"], found["crossed_low"], found["crossed_high"]) == (None, None, None)
    assert found["item_error"] > 0


def test_an_ensemble_has_it_where_answers_are_given():
    """Its members choose the greedy answer that is judged; they do not choose one that is given."""
    assert AnswerTable("ensemble", answers(model="ensemble")).draws is None
    assert AnswerTable("ensemble", answers(model="ensemble", given=True)).draws is not None
    assert AnswerTable("m", answers(draws=1)).draws is None
    assert AnswerTable("m", [answers()[0], answers(draws=4)[1]]).draws is None


def test_errors_hold_for_new_sets_of_draws():
    """S = 16 draws at a time from one posterior, the same questions: what results say against what new draws show."""
    rng = np.random.default_rng(5)
    right = (rng.random(80) < 0.6).astype(float)
    level, slope = rng.exponential(1.0, 80) + 0.7 * (1 - right) + 0.05, rng.normal(0, 0.6, 80)
    base = replace(record(), samples=[], measured={})
    shown, said = [], []
    for _ in range(60):
        nll = level[:, None] * np.exp(slope[:, None] * rng.normal(size=16))
        rows = [
            replace(
                base, item=f"test/{n}", correct=right[n],
                answer=replace(base.answer, draw_log_probs=(-nll[n]).tolist(), draw_p_true=[], p_true=None),
            )
            for n in range(80)
        ]  # fmt: skip
        table = AnswerTable("m", rows)
        shown.append(
            [np.mean((table.confidences["mixture"] - right) ** 2), auroc(table.scores["mixture"], 1 - right)]
        )
        if len(said) < 12:
            weights = table.draws.weights(0)
            sure = table.draws.confidence("mixture", np.arange(80), weights)
            areas = [auroc(one, 1 - right) for one in table.draws.scores("mixture", np.arange(80), weights)]
            said.append([literal_error(np.mean((sure - right) ** 2, axis=1), 16), literal_error(areas, 16)])
    ratio = np.mean(said, axis=0) / np.std(shown, axis=0, ddof=1)
    assert (ratio > 0.7).all() and (ratio < 1.4).all(), ratio


def test_the_report_tells_both_intervals():
    head = {
        "task": "t", "task_sha256": "a", "shots": [], "num_samples": S, "num_answers": 0, "antithetic": False,
        "clusters_by": "text", "created": "2026-01-01T00:00:00+00:00", "models": [{"name": "m"}],
        "settings": {"threshold": 0.5},
    }  # fmt: skip
    results = {**head, **compute_answer_results(answers(), num_bootstrap=50)}
    found = row(results, "estimators", estimator="mixture", group="all")["metrics"]["auroc"]
    page = render_answer_report(results)
    assert f"with draws [{found['crossed_low']:.3f}, {found['crossed_high']:.3f}]" in page
    assert "over new questions and new posterior draws" in page
    plain = {**head, **compute_answer_results(answers(draws=1), num_bootstrap=50)}
    assert "with draws" not in render_answer_report(plain)
