"""Decisions about generated answers as pure functions: threshold, temperature, verification, damaged sections."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from test_answer_results import made as whole_records

from vlora.errors import DataError, PosteriorFormatError
from vlora.eval.generation.confidence import fit_power
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.decide import decide_answers, fit_answers, verify_answers
from vlora.eval.metrics.binomial import binomial_tail
from vlora.eval.metrics.risk_control import controlled_threshold, likely_start, threshold_grid
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.decisions import check_content

RULES = AnswerCalibrationConfig(score="max_probability", risk=0.3, delta=0.3)


def made(nlls, correct):
    """Records without samples, whose scores take no time."""
    return whole_records(nlls, correct, samples=[])


def world(seed, count=100):
    """Answers whose chance to be right is their probability: -log p is a useful score."""
    rng = np.random.default_rng(seed)
    nll = rng.exponential(0.7, count)
    return nll, (rng.random(count) < np.exp(-nll)).astype(float)


def decisions(rule, power=1.0):
    return AnswerDecisions(
        task_file="t", task_sha256="0", num_samples=2, antithetic=True, confidence="max_probability", power=power,
        abstention=rule,
    )  # fmt: skip


def test_threshold_and_temperature_are_fitted_on_parts_of_their_own():
    (first, right), (second, held) = world(0), world(1)
    power, rule = fit_answers(made(first, right), made(second, held), RULES)
    assert power == pytest.approx(fit_power(np.exp(-first), right), rel=1e-6)
    grid = threshold_grid(first)
    start = likely_start(first, 1 - right, grid, num_items=100, risk=0.3)
    expected = controlled_threshold(second, 1 - held, grid, risk=0.3, delta=0.3, start=start)
    assert (
        rule.threshold == pytest.approx(expected.threshold)
        and rule.n == 100
        and rule.score == "max_probability"
    )
    assert (rule.answered, rule.wrong) == (expected.answered, expected.wrong) and rule.answered > 10
    assert any(rule.threshold == pytest.approx(value) for value in first)  # of the grid, not of its own part
    assert binomial_tail(rule.wrong, rule.answered, 0.3) <= 0.3


def test_the_promise_holds_over_many_fits():
    """P(risk of the answers > .3) <= .3, where the risk of every threshold is known."""
    broken = 0
    fine = np.linspace(0, 20, 200_001)
    density = np.exp(-fine / 0.7)
    mass, errors = np.cumsum(density), np.cumsum(density * (1 - np.exp(-fine)))
    for seed in range(12):
        _, rule = fit_answers(made(*world(2 * seed, 50)), made(*world(2 * seed + 1, 50)), RULES)
        if np.isfinite(rule.threshold):
            place = int(np.searchsorted(fine, rule.threshold, side="right")) - 1
            broken += errors[place] / mass[place] > 0.3
    assert broken <= 6  # P(more than 6 of 12 at a chance of .3) < 4 %


def test_declined_ungraded_and_unscored_answers_err_on_the_side_of_silence():
    nll, right = world(1)
    plain = made(nll, right)
    _, rule = fit_answers(made(*world(0)), plain, RULES)
    declining = [replace(r, attempted=False, correct=0.0) if i < 20 else r for i, r in enumerate(plain)]
    _, fewer = fit_answers(made(*world(0)), declining, RULES)
    assert fewer.n == 80
    ungraded = [replace(r, correct=None) for r in plain]
    _, none = fit_answers(made(*world(0)), ungraded, RULES)
    assert none.threshold == -math.inf and none.wrong == 0
    records = declining[:30]
    decided = decide_answers(decisions(rule, 2.0), records)
    assert (decided.answered[:20] == 0).all() and decided.answered[20:].sum() == (
        nll[20:30] <= rule.threshold
    ).sum()
    assert decided.confidence == pytest.approx(np.exp(-2 * nll[:30]), rel=1e-6)
    judged = replace(rule, score="contradiction")  # a judge that failed on every question
    assert not decide_answers(decisions(judged), plain).answered.any()
    assert decide_answers(decisions(None), declining).answered.sum() == 80


def test_the_start_comes_from_attempts_of_the_first_part_with_ungraded_ones_wrong():
    (first, right), (second, held) = world(4), world(5)
    records = made(first, right)
    records = [replace(r, attempted=False, correct=0.0) if i < 30 else r for i, r in enumerate(records)]
    records = [replace(r, correct=None) if 30 <= i < 60 else r for i, r in enumerate(records)]
    _, rule = fit_answers(records, made(second, held), RULES)
    wrong = np.where((np.arange(100) >= 60) & (right == 1), 0, 1)[30:]
    grid = threshold_grid(first[30:])
    start = likely_start(first[30:], wrong, grid, num_items=100, risk=0.3)
    plain = likely_start(first, 1 - right, threshold_grid(first), num_items=100, risk=0.3)
    assert start != plain
    found = controlled_threshold(second, 1 - held, grid, risk=0.3, delta=0.3, start=start)
    assert rule.threshold == pytest.approx(found.threshold) and rule.answered == found.answered


def test_verification_counts_what_is_answered_wrong_and_unanswerable():
    nll, right = world(3, 50)
    _, rule = fit_answers(made(*world(0)), made(*world(1)), RULES)
    records = made(nll, right)
    records = [replace(r, references=[], correct=0.0) if i < 10 else r for i, r in enumerate(records)]
    right[:10] = 0
    entry = verify_answers(decisions(rule), records, "test")
    given = nll <= rule.threshold
    assert (
        entry["unanswerable"] == {"rows": 10, "answered": int(given[:10].sum())} and entry["labelled"] == 40
    )
    found = entry["abstention"]
    assert (found["answered"], found["wrong"]) == (given.sum(), (given & (right == 0)).sum())
    assert found["coverage"] == pytest.approx(given.mean()) and found["holds"] == (found["low"] <= 0.3)
    assert entry["accuracy"] == pytest.approx(right.mean()) and entry["ece_floor"] > 0


def test_what_cannot_be_fitted_is_one_line():
    records = made(*world(0, 20))
    single = [
        replace(r, answer=replace(r.answer, draw_log_probs=r.answer.draw_log_probs[:1])) for r in records
    ]
    with pytest.raises(
        DataError, match="score mixture is missing for all 20 validation questions .* posterior draws"
    ):
        fit_answers(single, single, replace(RULES, score="mixture"))
    with pytest.raises(DataError, match="confidence cluster_share is missing"):
        fit_answers(records, records, replace(RULES, confidence="cluster_share"))
    silent = [replace(r, attempted=False, correct=0.0) for r in records]
    with pytest.raises(DataError, match="of 20 and 20 validation questions 20 and 0 have an attempt"):
        fit_answers(records, silent, RULES)


def test_the_section_is_read_back_and_damage_is_one_line():
    _, rule = fit_answers(made(*world(0)), made(*world(1)), RULES)
    whole = replace(decisions(rule, 1.5), temperature=2.0, settings={"seed": 1})
    assert AnswerDecisions.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    nothing = decisions(replace(rule, threshold=-math.inf))
    section = json.loads(json.dumps(nothing.to_json(), allow_nan=False))
    assert section["abstention"]["threshold"] is None and AnswerDecisions.from_json(section) == nothing
    for change, reason in (
        ({"power": -1}, "power must be a number between 0 and inf"),
        ({"num_samples": 1.5}, "num_samples must be a whole number"),
        ({"abstention": {"score": "x"}}, "no 'threshold'"),
        ({"temperature": "hot"}, "temperature must be a number"),
    ):
        with pytest.raises(PosteriorFormatError, match=f"section 'answers' is damaged .*{reason}"):
            check_content({"format": 1, "answers": {**whole.to_json(), **change}}, "calibration.json")
