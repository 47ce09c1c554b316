"""Thresholds on any score of choices, and gates: numbers by hand, and promises."""

import numpy as np
import pytest

from vlora.errors import ConfigError, DataError, PosteriorFormatError
from vlora.eval.calibrate_decisions import _fit
from vlora.eval.config import CalibrationConfig, GateConfig
from vlora.eval.decide import ABSTENTION_GRID, decide, fit_gate, fit_rules, verify
from vlora.eval.decision_scores import check_scores, uncertainty
from vlora.eval.metrics.risk_control import controlled_threshold, likely_start
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information
from vlora.eval.predictive import Predictive, decision_scores
from vlora.posterior.decisions import Abstention, Decisions, Gate, check_content

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HEAD = {
    "task": "multiple_choice",
    "predictor": "samples",
    "num_samples": 4,
    "antithetic": True,
    "temperature": 1.0,
}


def rule(score, threshold):
    return Abstention(
        score=score, risk=0.1, delta=0.1, threshold=threshold, n=9, answered=5, wrong=0, risk_bound=0.05
    )


def test_the_gate_is_the_quantile_of_items_with_a_right_answer():
    gate = fit_gate("mutual_information", np.arange(21.0)[::-1], 0.95)
    assert gate == Gate(score="mutual_information", quantile=0.95, threshold=19.0, n=21)
    assert fit_gate("entropy", [1.0, 2.0], 0.5).threshold == 1.5
    with pytest.raises(DataError, match="values must be a non-empty 1-D array"):
        fit_gate("entropy", [], 0.5)


def test_gate_and_start_come_from_rows_that_the_threshold_does_not_see():
    """The rows of the width behind their gate give the start, and the threshold is tested from there on the others."""
    rng = np.random.default_rng(3)
    doubt = [rng.random(80), rng.random(160)]
    info = [rng.random(80), rng.random(160)]
    right = [rng.random(len(d)) > 0.3 * np.maximum(d - 0.4, 0) for d in doubt]
    log_probs = np.log(np.stack([1 - doubt[1] / 2, doubt[1] / 2], axis=1))
    known, held = (
        {"max_probability": d / 2, "mutual_information": i} for d, i in zip(doubt, info, strict=True)
    )
    rules = CalibrationConfig(
        gate=GateConfig(score="mutual_information", quantile=0.8), alpha=[0.1], risk=0.15, delta=0.1
    )
    _, found, gate = _fit(rules, log_probs, (~right[1]).astype(int).tolist(), known, right[0], held)
    limit = np.quantile(info[0], 0.8)
    before, after = (np.where(i > limit, np.inf, d / 2) for d, i in zip(doubt, info, strict=True))
    start = likely_start(before, ~right[0], ABSTENTION_GRID, num_items=160, risk=0.15)
    want = controlled_threshold(after, ~right[1], ABSTENTION_GRID, risk=0.15, delta=0.1, start=start)
    assert gate is not None and gate.threshold == pytest.approx(limit)
    assert (found.threshold, found.answered, found.wrong) == (want.threshold, want.answered, want.wrong)
    others = likely_start(after, ~right[1], ABSTENTION_GRID, num_items=160, risk=0.15)
    assert start != others and want.answered > 50


def test_an_answer_needs_both_limits():
    """Confident and known; confident and unknown; unsure and known; on both limits."""
    log_probs = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])
    scores = {"mutual_information": [0.1, 0.5, 0.1, 0.3]}
    gate = Gate(score="mutual_information", quantile=0.95, threshold=0.3, n=20)
    decisions = Decisions(**HEAD, abstention=rule("max_probability", 1 - 0.8 + 1e-12), gate=gate)
    decided = decide(decisions, log_probs, scores)
    assert decided.answered.tolist() == [True, False, False, True]
    assert decided.gated.tolist() == [False, True, False, False]
    assert decided.scores["max_probability"] == pytest.approx([0.1, 0.1, 0.4, 0.2])
    entry = verify(decisions, log_probs, [0, 1, None, 1], "test", scores)
    assert entry["abstention"]["answered"] == 2 and entry["abstention"]["wrong"] == 1
    assert entry["abstention"]["gated"] == 1 and entry["unanswerable"] == {
        "rows": 1, "answered": 0, "mean_set_size": {}, "gated": 0,
    }  # fmt: skip
    with pytest.raises(DataError, match="compares mutual_information, which was not given"):
        decide(decisions, log_probs)
    with pytest.raises(DataError, match="one entry per item"):
        decide(decisions, log_probs, {"mutual_information": [0.1]})


def test_a_threshold_on_another_score():
    log_probs = np.log([[0.9, 0.1], [0.6, 0.4]])
    decisions = Decisions(**HEAD, abstention=rule("variation_ratio", 0.25))
    assert decide(decisions, log_probs, {"variation_ratio": [0.5, 0.25]}).answered.tolist() == [False, True]


def test_the_threshold_is_fitted_behind_the_gate_by_hand():
    """60 right at .1; 10 wrong at .2; 30 wrong at .1 that the gate stops. .9^60 < .05 shows .1, nothing shows .2."""
    values = np.r_[np.full(60, 0.1), np.full(10, 0.2), np.full(30, np.inf)]
    log_probs = np.log(np.tile([[0.7, 0.3]], (100, 1)))
    label = np.r_[np.zeros(60), np.ones(40)].astype(int)
    _, found = fit_rules(
        log_probs, label, alphas=(), risk=0.1, delta=0.1, score="entropy", values=values, grid=[0.1, 0.2]
    )
    assert (found.score, found.threshold, found.n, found.answered, found.wrong) == (
        "entropy",
        0.1,
        100,
        60,
        0,
    )
    assert found.risk_bound == pytest.approx(1 - 0.05 ** (1 / 60))
    _, without = fit_rules(log_probs, label, alphas=(), risk=0.1, delta=0.1, score="entropy",
                           values=np.minimum(values, 0.1), grid=[0.1, 0.2])  # fmt: skip
    assert without.threshold == -np.inf


def world(size, seed, unknown=0.0):
    """Log-probabilities, labels and a score that only tells unknown items: they are answered as surely, at random."""
    rng = np.random.default_rng(seed)
    z = 2.5 * rng.normal(size=(size, 4))
    z -= np.log(np.exp(z).sum(1, keepdims=True))
    strange = rng.random(size) < unknown
    label = np.array(
        [rng.integers(4) if s else rng.choice(4, p=np.exp(row)) for s, row in zip(strange, z, strict=True)]
    )
    return z, label, rng.normal(size=size) + 4 * strange


def test_what_is_promised_holds_behind_the_gate_and_strangers_are_stopped():
    broken, answered, known = 0, [], world(4000, 998)
    strangers = world(2000, 999, unknown=1.0)
    for seed in range(25):
        others, held = world(400, 2 * seed), world(1500, 2 * seed + 1)
        gate = fit_gate("mutual_information", others[2], 0.95)
        values = np.where(held[2] > gate.threshold, np.inf, uncertainty(held[0]))
        sets, found = fit_rules(held[0], held[1], alphas=(), risk=0.1, delta=0.1, values=values)
        decisions = Decisions(**HEAD, conformal=sets, abstention=found, gate=gate)
        decided = decide(decisions, known[0], {"mutual_information": known[2]})
        wrong = decided.answer != known[1]
        broken += decided.answered.any() and wrong[decided.answered].mean() > 0.1
        assert decided.gated.mean() == pytest.approx(0.05, abs=0.04)
        passed = decide(decisions, strangers[0], {"mutual_information": strangers[2]}).answered.mean()
        alone = decide(Decisions(**HEAD, abstention=found), strangers[0]).answered.mean()
        answered.append((passed, alone))
    assert broken <= 25 * 0.1 + 4  # 95 % of binomial(25, .1) lie below
    passed, alone = np.mean(answered, axis=0)
    assert passed < 0.02 and alone > 0.1  # strangers look as sure as anybody


def test_scores_are_those_of_an_evaluation():
    samples = np.log([[[0.9, 0.1], [0.5, 0.5]], [[0.7, 0.3], [0.5, 0.5]]])
    mixture = mixture_log_probs(samples)
    found = Predictive(mixture, None, mutual_information(samples), variation_ratio=np.array([0.0, 0.5]))
    scores = decision_scores(found, temperature=2.0, base=np.array([2.0, 3.0]))
    assert set(scores) == {"max_probability", "entropy", "mutual_information", "variation_ratio",
                           "entropy_times_base", "mutual_information_times_base"}  # fmt: skip
    assert scores["entropy_times_base"] == pytest.approx(entropy(mixture) * [2, 3])
    assert scores["max_probability"] == pytest.approx([0.2**0.5 / (0.2**0.5 + 0.8**0.5), 0.5])
    assert "entropy_times_base" not in decision_scores(found)


@pytest.mark.parametrize(
    ("names", "predictor", "task", "message"),
    [
        (
            {"calibration.score": "length"},
            "mean",
            "multiple_choice",
            "calibration.score must be one of max_prob",
        ),
        (
            {"calibration.score": "mutual_information"},
            "mean",
            "multiple_choice",
            "the predictor mean with 4 draws has",
        ),
        (
            {"calibration.score": "logit_variance"},
            "samples",
            "multiple_choice",
            "logit_variance cannot be had",
        ),
        (
            {"calibration.gate.score": "variation_ratio"},
            "leading",
            "multiple_choice",
            "calibration.gate.score: var",
        ),
        ({"s": "entropy_times_base"}, "samples", "sequence_classification", "leave _times_base out"),
    ],
)
def test_scores_that_cannot_be_had_are_named(names, predictor, task, message):
    with pytest.raises(ConfigError, match=message):
        check_scores(names, predictor, task, 4)


def test_bad_settings_and_sections_are_one_line():
    with pytest.raises(ConfigError, match="gate.quantile must lie between 0 and 1, got 1"):
        GateConfig(score="entropy", quantile=1.0)
    with pytest.raises(ConfigError, match="num_thresholds at least 1, got 4 and 0"):
        CalibrationConfig(num_thresholds=0)
    section = Decisions(**HEAD, gate=Gate(score="entropy", quantile=0.9, threshold=1.0, n=3)).to_json()
    assert Decisions.from_json(section).gate == Gate(score="entropy", quantile=0.9, threshold=1.0, n=3)
    for change, message in (
        ({"score": "length"}, "score must be one of max_probability"),
        ({"quantile": 2}, "quantile must be a number between 0 and 1"),
        ({"threshold": None}, "threshold must be a number"),
        ({"n": -1}, "n must be a whole number"),
    ):
        damaged = {**section, "gate": {**section["gate"], **change}}
        with pytest.raises(PosteriorFormatError, match=f"the section 'decisions' is damaged .{message}"):
            check_content({"format": 2, "decisions": damaged}, "calibration.json")
