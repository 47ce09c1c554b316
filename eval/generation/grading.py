"""Whether an answer is an attempt, and whether it is right."""

import math
from collections.abc import Sequence

import numpy as np

from vlora.eval.entailment import Judge
from vlora.eval.generation.config import GradeConfig
from vlora.eval.semantic.lexical import answer_words, normalise_answer, token_f1

__all__ = ["grade", "is_attempt"]


def is_attempt(answer: str, decline: Sequence[str] = ()) -> bool:
    """Whether an answer says something and holds none of the phrases by which one declines."""
    text = answer.casefold().replace("’", "'")
    return bool(text.strip()) and not any(phrase.casefold() in text for phrase in decline)


def grade(
    answer: str,
    references: Sequence[str],
    config: GradeConfig,
    *,
    question: str = "",
    judge: Judge | None = None,
) -> tuple[float | None, int]:
    """Compare an answer with the right ones.

    Args:
        answer: The answer.
        references: Right answers; without any, every answer is wrong.
        config: How to compare.
        question: Put in front of both texts, for the judge.
        judge: For ``entailment``.

    Returns:
        1 right, 0 wrong, None when the judge failed on every reference that could have made it right; and the number
        of the judge's failures.
    """
    if not references:
        return 0.0, 0
    if config.by != "entailment" or judge is None:
        return float(any(_matches(answer, reference, config) for reference in references)), 0
    pairs = []
    for reference in references:
        first, second = f"{question} {answer}".strip(), f"{question} {reference}".strip()
        pairs += [(first, second), (second, first)]
    verdicts = judge.relations(pairs).reshape(len(references), 2, 3)
    failed = int(np.isnan(verdicts).any(axis=2).sum())
    known = [rows for rows in verdicts if not np.isnan(rows).any()]
    if any((rows.argmax(axis=1) == 0).all() for rows in known):
        return 1.0, failed
    return (None if failed else 0.0), failed


def _matches(answer: str, reference: str, config: GradeConfig) -> bool:
    if config.by == "exact":
        left, right = normalise_answer(answer), normalise_answer(reference)
        return left == right if left or right else answer.strip() == reference.strip()
    if config.by == "f1":
        return token_f1(answer, reference) >= config.threshold - math.ulp(1.0)
    words, wanted = answer_words(answer), answer_words(reference)
    starts = range(len(words) - len(wanted) + 1)
    return bool(wanted) and any(words[start : start + len(wanted)] == wanted for start in starts)
