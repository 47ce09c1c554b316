"""Comparing runs of answers over questions and draws, with calibration errors and areas under risk: literal forms."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from test_answer_compare import by_metric, save
from test_answer_draws import S, answers, resampled

from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.estimators import confidences, item_scores
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.delong import compare_auroc
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.sample_size import draws_for_width
from vlora.eval.metrics.selective import aurc
from vlora.eval.tables import Resampler
from vlora.recipes.compare import compare_runs, write_comparison

TEST = slice(0, 35)
HELD = slice(35, 50)
ODD = slice(50, 60)


def written(rows):
    """As the records come back from the file, numbers rounded."""
    lists = ("log_probs", "draw_log_probs", "draw_entropies", "draw_p_true")
    return [
        replace(
            r, answer=replace(r.answer, **{n: [round(v, 6) for v in getattr(r.answer, n)] for n in lists})
        )
        for r in rows
    ]


def pair_of(tmp_path, sides, **options):
    folders = [save(tmp_path / name, rows) for name, rows in zip(("after", "before"), sides, strict=True)]
    (pair,) = compare_runs(folders[::-1], num_bootstrap=200, **options)["pairs"]
    return pair, by_metric({"pairs": [pair]})


def right_of(rows):
    return np.array([float(row.correct) for row in rows[TEST]])


def sure_of(rows, power, name="mixture"):
    return sharpen([confidences(row)[name] for row in rows[TEST]], power)


def power_of(rows, name="mixture"):
    return fit_power([confidences(r)[name] for r in rows[HELD]], [r.correct for r in rows[HELD]])


def scored(rows, name, *parts):
    return np.array([item_scores(row)[name] for part in parts for row in rows[part]])


def deviations(rows, measure, seed):
    size = len(rows[0].answer.draw_log_probs)
    units = size // 2 if rows[0].antithetic else size
    every = draw_weights(size, 200, antithetic=rows[0].antithetic, seed=seed)
    found = np.array([measure(resampled(rows, weights)) for weights in every])
    return (found - found.mean()) * (units / (units - 1)) ** 0.5


@pytest.mark.parametrize(("other", "antithetic"), [(S, False), (S, True), (8, False)])
def test_draws_are_resampled_with_the_questions(tmp_path, other, antithetic):
    """Jointly where both have equally many; a temperature stays as it was fitted."""
    sides = [
        written(answers(1, model="a", antithetic=antithetic)),
        written(answers(2, draws=other, model="b", antithetic=antithetic)),
    ]
    pair, tests = pair_of(tmp_path, sides, seed=4, scores=["reverse_information", "token_nll"])
    assert pair["draws"] == {"a": S, "b": other, "paired": other == S}
    powers, right = [power_of(rows) for rows in sides], [right_of(rows) for rows in sides]
    positive = np.repeat([1.0, 0.0], [10, 35])

    def error(measures):
        seeds = (4, 4 if other == S else 5)
        parts = [deviations(*one) for one in zip(sides, measures, seeds, strict=True)]
        return np.std(parts[0] - parts[1], ddof=1)

    measures = {
        "brier mixture+temperature": [
            lambda rows, p=p, c=c: np.mean((sure_of(rows, p) - c) ** 2)
            for p, c in zip(powers, right, strict=True)
        ],
        "ece_15_equal_width mixture+temperature": [
            lambda rows, p=p, c=c: calibration(sure_of(rows, p), c).ece
            for p, c in zip(powers, right, strict=True)
        ],
        "aurc mixture": [lambda rows, c=c: aurc(scored(rows, "mixture", TEST), c) for c in right],
        "auroc reverse_information: wrong answers": [
            lambda rows, c=c: auroc(scored(rows, "reverse_information", TEST), 1 - c) for c in right
        ],
        "auroc reverse_information: nobody vs test": [
            lambda rows: auroc(scored(rows, "reverse_information", ODD, TEST), positive)
        ]
        * 2,
    }
    units = S // 2 if antithetic else S
    for name, both in measures.items():
        values, test = [of(rows) for of, rows in zip(both, sides, strict=True)], tests[name]
        assert (test["a"], test["b"]) == pytest.approx(tuple(values), abs=1e-9), name
        assert test["draw_error"] == pytest.approx(error(both), rel=1e-6), name
        needed = draws_for_width(abs(test["difference"]), test["draw_error"], units, test["item_error"])
        assert test["draws_needed"] == needed, name
    between = tests["auroc reverse_information: nobody vs test"]
    total = np.hypot(between["item_error"], between["draw_error"])
    plain = compare_auroc(*(scored(rows, "reverse_information", ODD, TEST) for rows in sides), positive)
    assert between["item_error"] == pytest.approx(plain.standard_error)
    assert between["p"] == pytest.approx(2 * NormalDist().cdf(-abs(plain.difference) / total))
    for name in ("correct", "auroc token_nll: wrong answers", "brier max_probability+temperature"):
        assert (tests[name]["draw_error"], tests[name]["draws_needed"]) == (None, None)


def test_calibration_and_risk_are_bootstrapped_over_questions(tmp_path):
    """Literal resamples: the ECE of the attempts, and the AURC of the questions that both attempt."""
    sides = [written(answers(seed, draws=1, model=name)) for seed, name in ((1, "a"), (2, "b"))]
    sides[0][3] = replace(sides[0][3], attempted=False, correct=0.0)
    _, tests = pair_of(tmp_path, sides, seed=2)
    name = "max_probability"
    said = [np.array([row.attempted for row in rows[TEST]]) for rows in sides]
    held = [power_of(rows, name) for rows in sides]
    sure = [sure_of(rows, power, name) for rows, power in zip(sides, held, strict=True)]
    right = [right_of(rows) for rows in sides]

    def error(place, chosen):
        kept = chosen[said[place][chosen]]
        return calibration(sure[place][kept], right[place][kept]).ece

    counts = Resampler(200, 2).counts(35)
    rows = [np.repeat(np.arange(35), row) for row in counts]
    found = tests[f"ece_15_equal_width {name}+temperature"]
    assert [found[side] for side in "ab"] == pytest.approx([error(p, np.arange(35)) for p in (0, 1)])
    differences = np.array([error(0, one) - error(1, one) for one in rows])
    assert found["item_error"] == pytest.approx(differences.std(ddof=1))
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    assert found["higher_is_better"] is False and found["draw_error"] is None
    both = np.flatnonzero(said[0] & said[1])
    uncertain = [scored(own, name, TEST)[both] for own in sides]
    risk = tests[f"aurc {name}"]
    assert [risk[side] for side in "ab"] == pytest.approx(
        [aurc(u, c[both]) for u, c in zip(uncertain, right, strict=True)]
    )
    chosen = [np.repeat(np.arange(34), row) for row in Resampler(200, 2).counts(34)]
    areas = np.array(
        [[aurc(u[i], c[both][i]) for u, c in zip(uncertain, right, strict=True)] for i in chosen]
    )
    assert risk["item_error"] == pytest.approx((areas[:, 0] - areas[:, 1]).std(ddof=1))
    assert risk["higher_is_better"] is False and "aurc mixture" not in tests  # neither has draws


def test_a_model_without_draws_adds_none_and_an_ensemble_none_that_is_known(tmp_path):
    mean = written(answers(2, draws=1, model="b"))
    pair, tests = pair_of(tmp_path / "mean", [written(answers(1, model="a")), mean])
    assert pair["draws"] == {"a": S, "b": 0, "paired": False}
    for name in ("auroc mixture: wrong answers", "auroc mixture: nobody vs test", "aurc mixture"):
        assert tests[name]["draw_error"] > 0 and tests[name]["stand_in"] == {"b": "max_probability"}
    together = written(answers(1, model="ensemble"))
    assert AnswerTable("ensemble", together).draws is None
    pair, tests = pair_of(tmp_path / "ensemble", [together, written(answers(2, model="b"))])
    assert pair["draws"] == {"a": S, "b": S, "paired": False}
    assert all(test["draw_error"] is None for test in tests.values())


def test_given_answers_are_delongs_with_draws(tmp_path):
    first, second = (written(answers(1, model=name, given=True)) for name in "ab")
    second = [
        replace(r, answer=replace(r.answer, draw_log_probs=[1.3 * v for v in r.answer.draw_log_probs[::-1]]))
        for r in second
    ]
    _, tests = pair_of(tmp_path, [first, written(second)], scores=["reverse_information"])
    test = tests["auroc reverse_information: wrong answers"]
    assert test["test"] == "DeLong" and test["draw_error"] > 0
    folders = [str(tmp_path / name) for name in ("before", "after")]
    page = write_comparison(compare_runs(folders, num_bootstrap=50), tmp_path / "c.html").read_text()
    assert "AURC, mixture" in page and "ECE, mixture + temperature" in page
    assert "95 % interval over items and draws" in page and "6 and 6 draws, paired" in page
