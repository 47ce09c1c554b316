r"""Scores that come from verdicts: the model's own on its answer, or an entailment model's on pairs of texts.

p(True)      p("True" | question, answer, "is it true?") / [p("True") + p("False")]     (Kadavath et al. 2022,
             arXiv:2207.05221, sec. 3); each the sum over the spellings that were scored (``p_true.true`` and
             ``p_true.false`` of ``kind: generation``)
SelfCheck    contradiction(sentence i) = (1/M) sum_m c_im / (e_im + c_im),  mean over sentences
             (Manakul et al. 2023, arXiv:2303.08896, sec. 5.4); sampled answer m is the premise
"""

import re
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import numbers, vector
from vlora.eval.semantic.clusters import CONTRADICTION, ENTAILMENT

__all__ = ["contradiction_rate", "p_true", "sentences"]

_BREAK = re.compile(r"(?<=[.!?…。])\s+")


def p_true(log_prob_true: Any, log_prob_false: Any) -> float:
    """Probability that the model gives to "True", normalised over the two verdicts.

    Args:
        log_prob_true: Log-probabilities of the spellings of "True", one or more.
        log_prob_false: The same for "False".

    Returns:
        Value in [0, 1]; higher is *more* certain that the answer is right.

    Raises:
        DataError: Empty, NaN, or both verdicts impossible.
    """
    true = np.logaddexp.reduce(vector("log_prob_true", np.atleast_1d(log_prob_true)))
    false = np.logaddexp.reduce(vector("log_prob_false", np.atleast_1d(log_prob_false)))
    if np.isneginf(true) and np.isneginf(false):
        raise DataError("the model gives neither verdict any probability; do the template and its words fit?")
    return float(np.exp(true - np.logaddexp(true, false)))


def contradiction_rate(relations: Any) -> float:
    """SelfCheck-style share of contradiction between the sentences of an answer and the sampled answers.

    Neutral verdicts are left out of each pair, as published; a pair without any other counts as 1/2.

    Args:
        relations: p(entailment, neutral, contradiction) of "sample m implies sentence i", shape ``(I, M, 3)``.

    Returns:
        Value in [0, 1]; higher is less certain.

    Raises:
        DataError: Wrong shape or not probabilities.
    """
    array = numbers("relations", relations)
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(f"relations must have shape (sentences, samples, 3), got {array.shape}")
    if np.isnan(array).any() or array.min() < 0 or np.abs(array.sum(axis=2) - 1).max() > 1e-3:
        raise DataError("relations must be probabilities that sum to 1")
    told = array[:, :, ENTAILMENT] + array[:, :, CONTRADICTION]
    share = np.divide(array[:, :, CONTRADICTION], told, out=np.full_like(told, 0.5), where=told > 0)
    return float(share.mean())


def sentences(text: str) -> list[str]:
    """Sentences of a text by their final punctuation; the whole text when it has none.

    Abbreviations may be cut; no language model or download is involved.
    """
    parts = [part.strip() for part in _BREAK.split(text.strip())]
    return [part for part in parts if part] or [text]
