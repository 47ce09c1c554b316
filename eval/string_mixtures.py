"""Choices as whole strings: how right the two mixtures of the draws are that a string of several tokens has.

    expectation of products   p(y) = 1/S sum_s prod_t p_s(y_t | y_<t)    one draw stands for the whole string
    product of expectations   p(y) = prod_t 1/S sum_s p_s(y_t | y_<t)    every token is averaged by itself

both normalised over the choices (Malinin and Gales, arXiv:2002.07650). For strings of one token they are equal. The
predictor ``samples`` is neither: it normalises over the choices under every draw and averages then.
"""

from collections.abc import Sequence

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.proper_scores import correctness, negative_log_likelihood
from vlora.eval.records import Record

__all__ = ["MIXTURES", "mixture_columns", "mixture_metrics"]

MIXTURES = ("expectation_of_products", "product_of_expectations")
"""Names of both in records; metrics put ``nll_`` and ``accuracy_`` in front."""


def mixture_metrics() -> list[str]:
    """Names of the columns and metrics."""
    return [f"{of}_{name}" for of in ("nll", "accuracy") for name in MIXTURES]


def mixture_columns(records: Sequence[Record], label: IntArray, width: int) -> dict[str, Array]:
    """Per-item values of both mixtures by metric, each ``(N,)``, NaN without a right answer.

    Args:
        records: Records of one model; nothing is found where one lacks a mixture.
        label: Right choice of every record, negative where there is none.
        width: Most choices of an item.
    """
    rows, found = np.flatnonzero(label >= 0), dict[str, Array]()
    for name in MIXTURES:
        given = [getattr(record, name) for record in records]
        if any(one is None for one in given) or not len(rows):
            continue
        log_probs = np.full((len(rows), width), -np.inf)
        for place, row in enumerate(rows):
            log_probs[place, : len(given[row])] = given[row]
        values = {
            "nll": negative_log_likelihood(log_probs, label[rows]).per_item,
            "accuracy": correctness(log_probs, label[rows]),
        }
        for of, numbers in values.items():
            found[f"{of}_{name}"] = np.full(len(records), np.nan)
            found[f"{of}_{name}"][rows] = numbers
    return found
