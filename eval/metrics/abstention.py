r"""Open answers with the right to decline: SimpleQA's counts and a score that punishes wrong answers.

    correct, incorrect, not attempted: shares of all N questions
    accuracy given attempted   c / (c + w)
    F                          harmonic mean of c / N and c / (c + w), as in SimpleQA
    penalised score at t       (1/N) (c - t/(1-t) w)

Sources: Wei et al. 2024, arXiv:2411.04368 (SimpleQA); the penalty makes "answer only if you are right with probability
above t" the best strategy, since t of right answers then pay for 1-t of wrong ones (Kalai et al. 2025,
arXiv:2509.04664). A wrong answer costs t/(1-t), declining costs nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, same_length, unit_interval, vector

__all__ = ["AbstentionScores", "abstention_scores", "penalised_score", "penalties"]


@dataclass(frozen=True)
class AbstentionScores:
    """Shares of all questions, and what follows from them; higher is better but for ``incorrect``."""

    correct: float
    incorrect: float
    not_attempted: float
    accuracy_given_attempted: float
    """NaN when nothing was attempted."""
    f_score: float
    """0 when nothing was right."""


def _attempts(attempted: Any, correct: Any) -> tuple[Array, Array]:
    attempted, correct = unit_interval("attempted", attempted), unit_interval("correct", correct)
    same_length(attempted=attempted, correct=correct)
    if ((attempted != 0) & (attempted != 1)).any():
        raise DataError("attempted must be 0 or 1 for every question")
    return attempted, np.where(attempted == 1, correct, 0.0)


def abstention_scores(attempted: Any, correct: Any) -> AbstentionScores:
    """SimpleQA's counts.

    Args:
        attempted: 1 where the question was answered, 0 where the model declined. Shape ``(N,)``.
        correct: 1 where the answer is right, between for partial credit; not read where not attempted.

    Raises:
        DataError: Lengths differ, empty, NaN, or values out of range.
    """
    attempted, correct = _attempts(attempted, correct)
    share, right = float(attempted.mean()), float(correct.mean())
    given = right / share if share > 0 else float("nan")
    return AbstentionScores(
        correct=right,
        incorrect=share - right,
        not_attempted=1 - share,
        accuracy_given_attempted=given,
        f_score=2 * given * right / (given + right) if right > 0 else 0.0,
    )


def penalties(attempted: Any, correct: Any, threshold: float) -> Array:
    """Score of each question at a threshold: 1 right, ``-t/(1-t)`` wrong, 0 declined.

    Args:
        attempted: As for :func:`abstention_scores`.
        correct: As for :func:`abstention_scores`.
        threshold: t in [0, 1), the probability of being right above which answering pays.

    Returns:
        Values of shape ``(N,)``; higher is better.

    Raises:
        DataError: Bad input, or a threshold out of range.
    """
    if not 0 <= threshold < 1:
        raise DataError(f"the threshold of a penalised score must lie in [0, 1), got {threshold}")
    attempted, correct = _attempts(attempted, correct)
    return correct - threshold / (1 - threshold) * (attempted - correct)


def penalised_score(confidence: Any, correct: Any, threshold: float, *, attempted: Any = None) -> float:
    """Mean penalised score of a model that answers when its confidence reaches the threshold.

    Args:
        confidence: Probability of being right as the model states it, in [0, 1]. Shape ``(N,)``.
        correct: 1 where the answer would be right. Shape ``(N,)``.
        threshold: t in [0, 1).
        attempted: 0 where the model declined in words, whatever its confidence; None for never.

    Returns:
        Score of at most 1; 0 is what declining everything earns; higher is better.

    Raises:
        DataError: Bad input, or a threshold out of range.
    """
    confidence = unit_interval("confidence", confidence)
    spoken = np.ones(len(confidence)) if attempted is None else vector("attempted", attempted)
    same_length(confidence=confidence, attempted=spoken)
    return float(penalties(spoken * (confidence >= threshold), correct, threshold).mean())
