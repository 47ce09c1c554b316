"""Decisions about generated answers: fitted on held-out questions, applied to new ones, checked on a third set.

The rule for "don't know" is risk-controlled (:mod:`vlora.eval.metrics.risk_control`) on any uncertainty of
:mod:`vlora.eval.generation.estimators`: among attempts with a score at most t, at most ``risk`` are wrong. Scores have
no scale of their own, so the thresholds that are tested are quantiles of the score on *other* held-out questions, on
which the temperature of the confidence is fitted too (:mod:`vlora.eval.generation.confidence`). An answer by which the
model itself declines is neither right nor wrong and is never given. One that the judge could not grade counts as wrong
here, and a question that lacks the score ranks as the least certain one: both err on the side of silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.binomial import clopper_pearson
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.risk_control import controlled_threshold, likely_start, threshold_grid
from vlora.posterior.abstention import Abstention
from vlora.posterior.answer_decisions import AnswerDecisions

__all__ = [
    "DecidedAnswers",
    "decide_answers",
    "fit_answers",
    "risk_of",
    "validation_parts",
    "verify_answers",
]


@dataclass(frozen=True)
class DecidedAnswers:
    """Decisions about the answers to N questions."""

    confidence: Array
    """Probability that the answer is right, at the fitted temperature, ``(N,)``."""
    uncertainty: Array | None
    """The score that decides, infinite where a question lacks it, ``(N,)``; None without a rule."""
    answered: Array
    """1 where the answer is given, 0 for "don't know", ``(N,)``."""


def validation_parts(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide validation questions: for the grid of thresholds and the temperature, and for the threshold.

    Args:
        count: Questions.
        share: Of them for the threshold.
        seed: Of the division.

    Returns:
        Indices of both parts, in order.

    Raises:
        DataError: A part would be empty.
    """
    size = round(share * count)
    if not 1 <= size < count:
        raise DataError(
            f"{count} validation questions cannot be shared between temperature and threshold; give more, or "
            "change calibration.threshold_share"
        )
    held = set(np.random.default_rng(seed).permutation(count).tolist()[:size])
    return [i for i in range(count) if i not in held], sorted(held)


def fit_answers(
    fit: Sequence[AnswerRecord], held: Sequence[AnswerRecord], rules: AnswerCalibrationConfig
) -> tuple[float, Abstention]:
    """Fit the temperature of the confidence and the grid on one part, the threshold on the other.

    Args:
        fit: Held-out questions for grid and temperature.
        held: Others, for the threshold.
        rules: Score, confidence, risk.

    Returns:
        The power of the confidence, and the rule.

    Raises:
        DataError: The records lack the score or the confidence, or a part holds no attempt.
    """
    first, second = AnswerTable("fit", fit), AnswerTable("held", held)
    name = rules.score or "semantic_entropy"
    score, sure = _column(first, name), _confidence(first, rules.confidence)
    ranked, attempts = first.ranked, np.flatnonzero(second.attempted == 1)
    finite = score[(first.attempted == 1) & np.isfinite(score)]
    if not ranked.any() or not len(finite) or not len(attempts):
        raise DataError(
            f"of {len(fit)} and {len(held)} validation questions {int(ranked.sum())} and {len(attempts)} have an "
            f"attempt that can be graded and scored by {name}; a threshold needs both, give more questions"
        )
    tried = np.flatnonzero(first.attempted == 1)
    grid = threshold_grid(finite, rules.num_thresholds)
    found = controlled_threshold(
        _column(second, name)[attempts],
        _wrong(second)[attempts],
        grid,
        risk=rules.risk,
        delta=rules.delta,
        start=likely_start(
            score[tried], _wrong(first)[tried], grid, num_items=len(attempts), risk=rules.risk
        ),
    )
    rule = Abstention(
        score=name,
        risk=rules.risk,
        delta=rules.delta,
        threshold=found.threshold,
        n=found.n,
        answered=found.answered,
        wrong=found.wrong,
        risk_bound=found.risk_bound,
    )
    return fit_power(sure[ranked], first.correct[ranked]), rule


def decide_answers(decisions: AnswerDecisions, records: Sequence[AnswerRecord]) -> DecidedAnswers:
    """Apply fitted decisions to records made under the settings that they were fitted with.

    Raises:
        DataError: The records lack the confidence.
    """
    table, rule = AnswerTable("data", records), decisions.abstention
    sure = np.minimum(sharpen(_confidence(table, decisions.confidence), decisions.power), 1.0)
    if rule is None:
        return DecidedAnswers(sure, None, table.attempted)
    score = table.scores.get(rule.score, np.full(len(records), np.inf))
    return DecidedAnswers(sure, score, table.attempted * (score <= rule.threshold))


def verify_answers(decisions: AnswerDecisions, records: Sequence[AnswerRecord], name: str) -> dict[str, Any]:
    """How decisions do on a set that they were not fitted on.

    Args:
        decisions: What was fitted.
        records: Of one set.
        name: Name of the set.

    Returns:
        An entry of ``verified``: accuracy and ECE of the confidence with its floor among attempts, the share answered
        and the risk of the answers with its exact 95 % interval and whether it contradicts the promise (``holds``); of
        questions without an answer how many are answered.
    """
    table, decided = AnswerTable(name, records), decide_answers(decisions, records)
    wrong, ranked = _wrong(table), table.ranked
    unanswerable = np.array([not r.references and not r.answer.given for r in records])
    entry: dict[str, Any] = {
        **{"set": name, "rows": len(records), "labelled": int((~unanswerable).sum())},
        **{"attempts": int(table.attempted.sum()), "ungraded": int((~table.graded).sum())},
    }
    if unanswerable.any():
        answered = int(decided.answered[unanswerable].sum())
        entry["unanswerable"] = {"rows": int(unanswerable.sum()), "answered": answered}
    if ranked.any():
        sure, right = decided.confidence[ranked], table.correct[ranked]
        entry |= {"accuracy": float(right.mean()), "ece_15_equal_width": calibration(sure, right).ece}
        entry |= {"ece_floor": calibration_floor(sure).mean}
    if decisions.abstention is not None:
        given = decided.answered == 1
        entry["abstention"] = risk_of(
            decisions.abstention, int(given.sum()), int(wrong[given].sum()), len(records)
        )
    return entry


def risk_of(rule: Abstention, count: int, wrong: int, rows: int) -> dict[str, Any]:
    """Error rate of the answers against what was promised.

    Args:
        rule: What was fitted.
        count: Answers given.
        wrong: Wrong ones among them.
        rows: Questions asked.
    """
    low, high = clopper_pearson(wrong, count) if count else (0.0, 1.0)
    return {
        **{"answered": count, "wrong": wrong, "coverage": count / rows, "promised": rule.risk},
        **{"risk": wrong / count if count else None, "low": low, "high": high, "holds": low <= rule.risk},
    }


def _wrong(table: AnswerTable) -> Array:
    """1 for answers that are not known to be right; partial credit below 1 counts as wrong."""
    return np.where(np.nan_to_num(table.correct, nan=0.0) >= 1, 0.0, 1.0)


def _column(table: AnswerTable, name: str) -> Array:
    if name not in table.scores:
        raise DataError(
            f"the score {name} is missing for all {len(table.records)} validation questions of a part; it may need "
            "posterior draws, sampled answers (sampling.num_answers) or a judge: provide them, or choose another "
            "calibration.score"
        )
    return table.scores[name]


def _confidence(table: AnswerTable, name: str) -> Array:
    if name not in table.confidences:
        raise DataError(
            f"the confidence {name} is missing for all {len(table.records)} questions; it may need posterior draws, "
            "sampled answers or p_true: provide them, or choose another calibration.confidence"
        )
    return table.confidences[name]
