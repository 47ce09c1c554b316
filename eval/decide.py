"""Decisions from probabilities: fitted on held-out items, applied to new ones, and checked on a third set.

Prediction sets are split conformal (:mod:`vlora.eval.metrics.conformal`), the threshold for "don't know" is
risk-controlled (:mod:`vlora.eval.metrics.risk_control`) on the score 1 - confidence, or any other score of
:mod:`vlora.eval.decision_scores`. The grid of the confidence is fixed, so that it does not depend on any item:
geometric towards certainty, where thresholds for small risks lie. Other scores have no scale of their own; their grid
is quantiles on *other* held-out items. A gate is a quantile of a second score on those other items too, so the
threshold that is fitted behind it keeps its promise: among items that pass the gate and have a score up to the
threshold, at most ``risk`` are wrong. A gate is for items that nobody has labelled, such as people who do not exist: it
closes where the model knows less than it does about all but ``1 - quantile`` of the known ones. All of it promises
something only for items that are exchangeable with the held-out ones; ``verify`` says how much of it is left on any
other set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.decision_scores import rule_scores, uncertainty
from vlora.eval.metrics.arrays import Array, IntArray, labels, normalised, same_length, vector
from vlora.eval.metrics.binomial import clopper_pearson
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.conformal import (
    aps_scores,
    conformal_threshold,
    coverage_band,
    lac_scores,
    prediction_sets,
)
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.risk_control import controlled_threshold
from vlora.eval.metrics.temperature import temper
from vlora.posterior.decisions import Abstention, Conformal, Decisions, Gate

__all__ = ["ABSTENTION_GRID", "Decided", "above", "decide", "fit_gate", "fit_rules", "verify"]

ABSTENTION_GRID = np.concatenate([np.geomspace(1e-6, 0.05, 40), np.arange(0.06, 1.0, 0.02)])
"""Thresholds on 1 - confidence that are tested, from strict to lax."""
_SCORES = {"lac": lac_scores, "aps": aps_scores}


@dataclass(frozen=True)
class Decided:
    """Decisions about N items with up to K choices."""

    log_probs: Array
    """Log-probabilities at the fitted temperature, ``(N, K)``."""
    answer: NDArray[np.int64]
    """Most probable choice, the first of equal ones, ``(N,)``."""
    confidence: Array
    """Its probability, ``(N,)``."""
    sets: dict[tuple[str, float], NDArray[np.bool_]]
    """Prediction sets by (method, alpha), each ``(N, K)``; choices that an item does not have are never in them."""
    answered: NDArray[np.bool_]
    """False where the rule for "don't know" says so, ``(N,)``; True everywhere without a rule."""
    gated: NDArray[np.bool_]
    """Whether the gate is closed, ``(N,)``; False everywhere without one."""
    scores: Mapping[str, Array]
    """Values of the scores that the rules compare, by name, each ``(N,)``."""


def fit_gate(score: str, values: Any, quantile: float) -> Gate:
    """The gate that a share of held-out items with a right answer passes.

    Args:
        score: Name of what is compared.
        values: Of items that no threshold is fitted on, higher for less certain, ``(M,)``.
        quantile: Share that passes.

    Raises:
        DataError: No item, or NaN.
    """
    values = vector("values", values)
    return Gate(score=score, quantile=quantile, threshold=float(np.quantile(values, quantile)), n=len(values))


def fit_rules(
    log_probs: Any,
    label: Any,
    *,
    alphas: Sequence[float],
    risk: float,
    delta: float,
    score: str = "max_probability",
    values: Any = None,
    grid: Any = ABSTENTION_GRID,
    start: float | None = None,
) -> tuple[tuple[Conformal, ...], Abstention]:
    """Fit prediction sets and the rule for "don't know" on held-out items.

    Args:
        log_probs: Log-probabilities of the predictor at its temperature, ``(N, K)``.
        label: Index of the right choice, ``(N,)``.
        alphas: Shares that sets may miss, one rule per method each.
        risk: Error rate allowed among the answers.
        delta: Chance over held-out sets that the threshold breaks it.
        score: Name of what the threshold is on.
        values: Its values, ``(N,)``, infinite where a gate is closed; None takes 1 - confidence.
        grid: Thresholds to test, chosen without these items.
        start: Strictest of them to test, chosen without these items; None starts at several.

    Returns:
        Rules for sets, and for abstention.

    Raises:
        DataError: Shapes differ, NaN, rows that do not sum to one, or a label out of range.
    """
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    rows = np.arange(len(label))
    sets = []
    for method, conformity in _SCORES.items():
        right = conformity(log_probs)[rows, label]
        for alpha in alphas:
            threshold = conformal_threshold(right, alpha)
            sets.append(Conformal(method=method, alpha=alpha, threshold=threshold, n=len(label)))
    wrong = (log_probs.argmax(axis=1) != label).astype(float)
    values = uncertainty(log_probs) if values is None else values
    found = controlled_threshold(values, wrong, grid, risk=risk, delta=delta, start=start)
    rule = Abstention(
        score=score,
        risk=risk,
        delta=delta,
        threshold=found.threshold,
        n=found.n,
        answered=found.answered,
        wrong=found.wrong,
        risk_bound=found.risk_bound,
    )
    return tuple(sets), rule


def decide(decisions: Decisions, log_probs: Any, scores: Mapping[str, Any] | None = None) -> Decided:
    """Apply fitted decisions to the predictor's log-probabilities, before their temperature.

    Args:
        decisions: What was fitted.
        log_probs: Log-probabilities of the predictor that was fitted, ``(N, K)``, padded with ``-inf``.
        scores: Scores that the rules compare besides ``max_probability``, by name, each ``(N,)``.

    Returns:
        Answers, confidences, sets, and which items are answered.

    Raises:
        DataError: Wrong shape, NaN, rows that do not sum to one, or a score that the rules need is missing.
    """
    tempered = temper(normalised("log_probs", log_probs, 2), decisions.temperature)
    there = ~np.isneginf(np.asarray(log_probs, dtype=np.float64))
    ranks = {method: _SCORES[method](tempered) for method in {rule.method for rule in decisions.conformal}}
    sets = {
        (rule.method, rule.alpha): prediction_sets(ranks[rule.method], rule.threshold) & there
        for rule in decisions.conformal
    }
    compared = _compared(decisions, tempered, scores or {})
    gated = above(decisions.gate, compared, len(tempered))
    answered = ~above(decisions.abstention, compared, len(tempered)) & ~gated
    confidence = np.exp(tempered.max(axis=1))
    return Decided(tempered, tempered.argmax(axis=1), confidence, sets, answered, gated, compared)


def above(rule: Abstention | Gate | None, scores: Mapping[str, Array], count: int) -> NDArray[np.bool_]:
    """Where a rule's score is above its threshold, ``(count,)``; nowhere without a rule."""
    if rule is None:
        return np.zeros(count, dtype=bool)
    return ~(scores[rule.score] <= rule.threshold)


def _compared(decisions: Decisions, tempered: Array, scores: Mapping[str, Any]) -> dict[str, Array]:
    """The scores that the rules compare."""
    found = {}
    for name in rule_scores(decisions):
        if name == "max_probability":
            found[name] = uncertainty(tempered)
            continue
        if name not in scores:
            raise DataError(
                f'the rule for "don\'t know" compares {name}, which was not given; expected it among the scores'
            )
        found[name] = vector(name, scores[name])
        same_length(log_probs=tempered, **{name: found[name]})
    return found


def verify(
    decisions: Decisions,
    log_probs: Any,
    label: Sequence[int | None],
    name: str,
    scores: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How decisions do on a set that they were not fitted on.

    Args:
        decisions: What was fitted.
        log_probs: Log-probabilities of the predictor, ``(N, K)``.
        label: Index of the right choice, None where there is none.
        name: Name of the set.
        scores: As in :func:`decide`.

    Returns:
        An entry of ``verified``: on labelled items accuracy, NLL, ECE with its floor, coverage of the sets and risk of
        the answers with exact 95 % intervals, and whether they contradict what was promised (``holds``); on items
        without a right answer how many are answered, which should be few; of both how many a gate stops.

    Raises:
        DataError: No item, shapes that differ, NaN, or rows that do not sum to one.
    """
    if not len(label):
        raise DataError(f"the set {name!r} holds no item, so nothing can be verified on it")
    decided = decide(decisions, log_probs, scores)
    known = np.array([value is not None for value in label])
    entry: dict[str, Any] = {"set": name, "rows": len(label), "labelled": int(known.sum())}
    if (~known).any():
        entry["unanswerable"] = {
            "rows": int((~known).sum()),
            "answered": int(decided.answered[~known].sum()),
            "mean_set_size": _mean_sizes(decided, ~known),
            **_gated(decisions, decided, ~known),
        }
    if not known.any():
        return entry
    truth = np.array([value for value in label if value is not None], dtype=np.int64)
    right = decided.answer[known] == truth
    bins = calibration(np.minimum(decided.confidence[known], 1.0), right)
    entry |= {
        "accuracy": float(right.mean()),
        "nll": _finite(negative_log_likelihood(decided.log_probs[known], truth).mean),
        "ece_15_equal_width": bins.ece,
        "ece_floor": calibration_floor(np.minimum(decided.confidence[known], 1.0)).mean,
        "conformal": [_covered(rule, decided, known, truth) for rule in decisions.conformal],
    }
    if decisions.abstention is not None:
        entry["abstention"] = _risk(decisions.abstention, right, decided.answered[known])
        entry["abstention"] |= _gated(decisions, decided, known)
    return entry


def _gated(decisions: Decisions, decided: Decided, rows: NDArray[np.bool_]) -> dict[str, int]:
    """How many of some rows the gate stops, where there is one."""
    return {} if decisions.gate is None else {"gated": int(decided.gated[rows].sum())}


def _covered(rule: Conformal, decided: Decided, known: NDArray[np.bool_], truth: IntArray) -> dict[str, Any]:
    """Coverage of one rule against what it promised."""
    sets = decided.sets[rule.method, rule.alpha][known]
    held = int(sets[np.arange(len(truth)), truth].sum())
    low, high = clopper_pearson(held, len(truth))
    band = coverage_band(rule.n, rule.alpha)
    return {
        **{
            "method": rule.method,
            "alpha": rule.alpha,
            "coverage": held / len(truth),
            "low": low,
            "high": high,
        },
        **{"expected_low": band[0], "expected_high": band[1], "mean_size": float(sets.sum(axis=1).mean())},
        **{"empty_share": float((~sets.any(axis=1)).mean()), "holds": high >= min(1 - rule.alpha, band[0])},
    }


def _risk(rule: Abstention, right: NDArray[np.bool_], answered: NDArray[np.bool_]) -> dict[str, Any]:
    """Error rate of the answers against what was promised."""
    count, wrong = int(answered.sum()), int((~right & answered).sum())
    low, high = clopper_pearson(wrong, count) if count else (0.0, 1.0)
    return {
        **{"answered": count, "wrong": wrong, "coverage": count / len(right), "promised": rule.risk},
        **{"risk": wrong / count if count else None, "low": low, "high": high, "holds": low <= rule.risk},
    }


def _mean_sizes(decided: Decided, rows: NDArray[np.bool_]) -> Mapping[str, float]:
    """Mean size of every kind of set, by ``method alpha``."""
    return {
        f"{method} {alpha:g}": float(sets[rows].sum(axis=1).mean())
        for (method, alpha), sets in decided.sets.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
