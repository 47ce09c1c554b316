"""Decisions: promises kept on new items over many worlds, applied as fitted, and what shift does to them."""

import numpy as np
import pytest

from vlora.errors import DataError, PosteriorFormatError
from vlora.eval.decide import decide, fit_rules, verify
from vlora.eval.metrics.temperature import temper
from vlora.posterior.decisions import Decisions, check_content


def world(size, seed, sharp=1.0):
    """Log-probabilities and labels; calibrated at ``sharp`` = 1."""
    rng = np.random.default_rng(seed)
    z = 2.5 * rng.normal(size=(size, 4))
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    label = np.array([rng.choice(4, p=np.exp(row)) for row in z])
    return temper(z, 1 / sharp), label


def fitted(seed=0, size=600, alphas=(0.1,), risk=0.1, **changes):
    log_probs, label = world(size, seed)
    sets, rule = fit_rules(log_probs, label, alphas=alphas, risk=risk, delta=0.1)
    head = {"task": "multiple_choice", "predictor": "mean", "num_samples": 0, "antithetic": False}
    return Decisions(**head, temperature=1.0, conformal=sets, abstention=rule, **changes)


def test_risk_is_kept_in_all_but_delta_of_the_worlds_and_sets_cover():
    log_probs, label = world(20000, 999)
    broken, covered = 0, []
    for seed in range(60):
        decisions = fitted(seed, size=300)
        decided = decide(decisions, log_probs)
        right = decided.answer == label
        answered = decided.answered
        broken += answered.any() and (~right[answered]).mean() > 0.1
        covered.append([sets[np.arange(len(label)), label].mean() for sets in decided.sets.values()])
    assert broken <= 60 * 0.1 + 5  # 95 % of binomial(60, .1) lie below
    assert (
        np.mean(covered, axis=0) == pytest.approx(np.array([0.9, 0.9]), abs=0.02)
        or (np.mean(covered, axis=0) >= 0.895).all()
    )


def test_the_threshold_answers_something_and_not_everything():
    decisions = fitted(size=2000)
    log_probs, label = world(3000, 5)
    entry = verify(decisions, log_probs, label.tolist(), "test")
    assert 0.2 < entry["abstention"]["coverage"] < 0.95
    assert entry["abstention"]["risk"] < 0.1 and entry["abstention"]["holds"]
    assert entry["accuracy"] < 0.9  # so the promise is worth something
    assert all(rule["holds"] for rule in entry["conformal"])
    assert entry["rows"] == entry["labelled"] == 3000 and "unanswerable" not in entry


def test_under_shift_the_broken_promise_is_named():
    decisions = fitted(size=2000)
    log_probs, label = world(3000, 5, sharp=4.0)  # over-confident now
    entry = verify(decisions, log_probs, label.tolist(), "shifted")
    assert not entry["abstention"]["holds"] and entry["abstention"]["low"] > 0.1
    assert not all(rule["holds"] for rule in entry["conformal"])


def test_rows_without_an_answer_are_counted_and_none_is_lost():
    decisions = fitted()
    log_probs, label = world(100, 3)
    mixed = [value if row % 4 else None for row, value in enumerate(label.tolist())]
    entry = verify(decisions, log_probs, mixed, "mixed")
    assert entry["labelled"] == 75 and entry["unanswerable"]["rows"] == 25
    assert 0 <= entry["unanswerable"]["answered"] <= 25
    only = verify(decisions, log_probs, [None] * 100, "unknown")
    assert only["unanswerable"]["rows"] == 100 and "accuracy" not in only
    with pytest.raises(DataError, match="the set 'none' holds no item"):
        verify(decisions, log_probs[:0], [], "none")


def test_few_items_give_full_sets_and_no_answers():
    decisions = fitted(size=8)
    assert all(np.isinf(rule.threshold) for rule in decisions.conformal)
    assert decisions.abstention is not None and decisions.abstention.threshold == -np.inf
    log_probs = np.array([[-0.01, -6.0, -6.0, -np.inf]])
    log_probs -= np.log(np.exp(log_probs).sum())
    decided = decide(decisions, log_probs)
    assert not decided.answered.any()
    for sets in decided.sets.values():
        assert sets.tolist() == [[True, True, True, False]]  # every choice the item has, and no padding
    again = Decisions.from_json(decisions.to_json())
    assert again.conformal == decisions.conformal and again.abstention == decisions.abstention
    assert decisions.to_json()["abstention"]["threshold"] is None


def test_temperature_is_part_of_the_decision():
    log_probs, label = world(2000, 1, sharp=3.0)
    sets, rule = fit_rules(temper(log_probs, 3.0), label, alphas=(0.1,), risk=0.1, delta=0.1)
    head = {"task": "multiple_choice", "predictor": "mean", "num_samples": 0, "antithetic": False}
    decided = decide(Decisions(**head, temperature=3.0, conformal=sets, abstention=rule), log_probs)
    assert decided.confidence == pytest.approx(np.exp(temper(log_probs, 3.0).max(1)))
    assert (~(decided.answer == label)[decided.answered]).mean() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"predictor": "both"},
            "predictor must be one of samples, mean, linearised, kronecker, leading, got 'both'",
        ),
        ({"temperature": 0}, "temperature must be a number between 0 and inf, got 0"),
        ({"num_samples": -1}, "num_samples must be a whole number, got -1"),
        ({"task": ...}, "no 'task'"),
        (
            {"conformal": [{"method": "x", "alpha": 0.1, "threshold": 0, "n": 3}]},
            "method must be one of lac, aps",
        ),
        ({"conformal": 3}, "not iterable"),
        ({"abstention": {"threshold": 0.5}}, "no 'score'"),
    ],
)
def test_a_damaged_section_is_one_line(change, message):
    section = {**fitted(size=50).to_json(), **change}
    section = {key: value for key, value in section.items() if value is not ...}
    with pytest.raises(PosteriorFormatError, match=f"the section 'decisions' is damaged .*{message}"):
        check_content({"format": 1, "decisions": section}, "calibration.json")


def test_newer_formats_are_refused_and_foreign_files_left_alone():
    for number in (3, None, True, "1"):
        with pytest.raises(PosteriorFormatError, match="this vlora reads up to 2; install a newer vlora"):
            check_content({"format": number, "decisions": {}}, "calibration.json")
    check_content({"mine": 1}, "calibration.json")
    check_content(None, "calibration.json")
