"""Is a difference between two models on the same items real? Exact, resampled, and corrected for many questions.

* McNemar: of the items that only one of the two answers right, is the split even? Exact binomial (McNemar 1947,
  doi:10.1007/BF02295996), and its mid-p form, which is less conservative (Fagerland et al. 2013,
  doi:10.1186/1471-2288-13-91).
* Paired bootstrap: items are resampled for both models at once; any metric that has a resampled form.
* Holm 1979: p-values of several questions, adjusted so that the chance of any false claim stays at the level.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, numbers, same_length, unit_interval, vector
from vlora.eval.metrics.binomial import binomial_tail
from vlora.eval.metrics.intervals import Interval, percentile_interval

__all__ = ["McNemar", "PairedBootstrap", "bootstrap_p_value", "holm", "mcnemar", "paired_bootstrap"]


@dataclass(frozen=True)
class McNemar:
    """Accuracy of model a against model b on the same items."""

    only_a: int
    """Items that only a answers right."""
    only_b: int
    """Items that only b answers right."""
    p_value: float
    """Two-sided exact p-value of equal accuracy; 1 when the models are right on the same items."""
    mid_p: float
    """The same with half the probability of the observed split: closer to the nominal level, no longer guaranteed."""


@dataclass(frozen=True)
class PairedBootstrap:
    """A difference of one metric between two models on the same items."""

    difference: Interval
    """Metric of a minus metric of b with its 95 % interval."""
    p_value: float
    """Two-sided, of no difference; never below 2 / (B + 1)."""


def mcnemar(correct_a: Any, correct_b: Any) -> McNemar:
    """McNemar's exact test of two accuracies on the same items.

    Args:
        correct_a: Whether a is right, 0 or 1. Shape ``(N,)``.
        correct_b: Whether b is right on the same items.

    Returns:
        Discordant items and p-values.

    Raises:
        DataError: Lengths differ, empty, NaN, or an answer that is neither right nor wrong.
    """
    correct_a, correct_b = unit_interval("correct_a", correct_a), unit_interval("correct_b", correct_b)
    same_length(correct_a=correct_a, correct_b=correct_b)
    for name, values in (("correct_a", correct_a), ("correct_b", correct_b)):
        if not np.isin(values, [0, 1]).all():
            raise DataError(
                f"{name} must be 0 or 1 for McNemar's test; for answers tied between choices use paired_bootstrap"
            )
    only_a, only_b = int((correct_a > correct_b).sum()), int((correct_b > correct_a).sum())
    fewer, total = min(only_a, only_b), only_a + only_b
    tail, strict = binomial_tail(fewer, total, 0.5), binomial_tail(fewer - 1, total, 0.5)
    if only_a == only_b:
        return McNemar(only_a, only_b, 1.0, 1.0)
    return McNemar(only_a, only_b, min(2 * tail, 1.0), tail + strict)


def bootstrap_p_value(replicates: Any) -> float:
    """Two-sided p-value of no difference from bootstrap replicates of a difference.

    Twice the smaller share on one side of zero, the observed sample counted in; replicates that are exactly zero count
    on both sides, those that are not defined on neither.

    Args:
        replicates: Differences of the resamples, shape ``(B,)``.

    Returns:
        A value in (0, 1]; NaN when no replicate is defined.
    """
    finite = numbers("replicates", replicates)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return float("nan")
    smaller = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(2 * (smaller + 1) / (len(finite) + 1), 1.0)


def paired_bootstrap(
    value_a: float, value_b: float, replicates_a: Any, replicates_b: Any, n: int
) -> PairedBootstrap:
    """Difference of one metric between two models from replicates on the same resamples.

    Args:
        value_a: Metric of a on the items themselves.
        value_b: Metric of b.
        replicates_a: Metric of a on every resample, shape ``(B,)``.
        replicates_b: Metric of b on the same resamples in the same order.
        n: Items that were resampled.

    Returns:
        The difference with its interval and p-value.

    Raises:
        DataError: Numbers of replicates differ.
    """
    replicates_a, replicates_b = numbers("replicates_a", replicates_a), numbers("replicates_b", replicates_b)
    same_length(replicates_a=replicates_a, replicates_b=replicates_b)
    differences: Array = replicates_a - replicates_b
    return PairedBootstrap(
        percentile_interval(value_a - value_b, differences, n), bootstrap_p_value(differences)
    )


def holm(p_values: Any) -> Array:
    """Holm's adjusted p-values of M questions: reject those at or below the level, and no more than that.

    With p_(1) <= … <= p_(M):  adjusted p_(j) = max over i <= j of min(1, (M - i + 1) p_(i)).

    Args:
        p_values: One per question, in [0, 1]. Shape ``(M,)``.

    Returns:
        Adjusted values in the order given, each at least its p-value.

    Raises:
        DataError: Empty, NaN, or values outside [0, 1].
    """
    p_values = vector("p_values", p_values)
    if p_values.min() < 0 or p_values.max() > 1:
        raise DataError(f"p_values must lie in [0, 1], got {p_values.min():.3g} to {p_values.max():.3g}")
    order = np.argsort(p_values, kind="stable")
    factor = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factor * p_values[order]), 1.0)
    return adjusted
