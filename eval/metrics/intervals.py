"""Percentile bootstrap over items, with resamples drawn as counts so that whole batches are one matrix product.

A resample of N items is the vector of how often each was drawn, so a mean over the resample is ``counts @ values / N``
and every statistic of this package has a ``*_resampled`` form that takes a block of such rows.
Sources: Efron 1979, doi:10.1214/aos/1176344552. Pairing: the same counts applied to two models on the same items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, numbers, same_length, vector

__all__ = [
    "Counts",
    "Interval",
    "bootstrap",
    "bootstrap_mean",
    "paired_difference",
    "percentile_interval",
    "resample_counts",
]

Counts = NDArray[np.uint16]

# Entries of one block of counts: as float64 it fits into a core's second-level cache.
_BLOCK_ENTRIES = 1 << 15


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % percentile bootstrap interval."""

    value: float
    """The statistic on the data itself."""
    low: float
    """2.5 % quantile of the resamples, NaN when it is not defined."""
    high: float
    """97.5 % quantile of the resamples, NaN when it is not defined."""
    n: int
    """Items (documents, for tokens) that were resampled."""


def resample_counts(num_items: int, num_resamples: int = 1000, seed: int | tuple[int, ...] = 0) -> Counts:
    """Draw bootstrap resamples of ``num_items`` items with replacement.

    Args:
        num_items: N, items to draw from and to draw.
        num_resamples: B, number of resamples.
        seed: Seed of numpy's ``default_rng``; the same seed and sizes give the same counts everywhere.

    Returns:
        How often each item was drawn, shape ``(B, N)``; rows sum to N.

    Raises:
        DataError: N or B is below one.
    """
    if num_items < 1 or num_resamples < 1:
        raise DataError(
            f"a bootstrap needs at least 1 item and 1 resample, got {num_items} and {num_resamples}"
        )
    rng = np.random.default_rng(seed)
    counts = np.empty((num_resamples, num_items), dtype=np.uint16)
    block = max(1, _BLOCK_ENTRIES // num_items)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = rng.integers(num_items, size=(rows, num_items)) + num_items * np.arange(rows)[:, None]
        flat = np.bincount(drawn.ravel(), minlength=rows * num_items)
        counts[start : start + rows] = flat.reshape(rows, num_items)
    return counts


def bootstrap(statistic: Callable[[Array], Array], counts: Counts) -> Array:
    """Apply a resampled statistic to all rows of ``counts``, in blocks that stay in cache.

    Args:
        statistic: Maps counts of shape ``(b, N)``, float64, to values of shape ``(b,)`` or ``(b, M)``.
        counts: Resamples of shape ``(B, N)``.

    Returns:
        Replicates of shape ``(B,)`` or ``(B, M)``.
    """
    if not len(counts):
        return statistic(np.ones((1, counts.shape[1])))[:0]
    block = max(1, _BLOCK_ENTRIES // counts.shape[1])
    parts = [statistic(counts[i : i + block].astype(np.float64)) for i in range(0, len(counts), block)]
    return np.concatenate(parts)


def percentile_interval(value: float, replicates: Any, n: int, level: float = 0.95) -> Interval:
    """Percentile interval of the replicates around a value.

    Replicates that are not defined (an AUROC on a resample with one class) are left out; when half of them or more
    are not, neither is the interval.

    Args:
        value: The statistic on the data.
        replicates: Its bootstrap replicates, shape ``(B,)``.
        n: Items that were resampled.
        level: Coverage of the interval.

    Returns:
        The value with its interval; NaN bounds when not defined.
    """
    replicates = numbers("replicates", replicates)
    finite = replicates[np.isfinite(replicates)]
    if 2 * len(finite) <= len(replicates):
        return Interval(value, float("nan"), float("nan"), n)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n)


def bootstrap_mean(values: Any, counts: Counts) -> Interval:
    """Mean of ``values`` ``(N,)`` with its interval from ``counts`` ``(B, N)``.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    values = vector("values", values)
    same_length(values=values, counts=counts.T)
    replicates = bootstrap(lambda weights: weights @ values, counts) / len(values)
    return percentile_interval(float(values.mean()), replicates, len(values))


def paired_difference(values_a: Any, values_b: Any, counts: Counts) -> Interval:
    """Mean of ``values_a - values_b`` over the same items, resampled together.

    Pairing removes the spread that the items themselves have in common, so the interval is right for "is a better
    than b" where two separate intervals are not.

    Args:
        values_a: Per-item values of one model, shape ``(N,)``.
        values_b: Per-item values of the reference, same items in the same order.
        counts: Resamples of shape ``(B, N)``.

    Returns:
        The mean difference a - b with its interval.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    values_a, values_b = vector("values_a", values_a), vector("values_b", values_b)
    same_length(values_a=values_a, values_b=values_b)
    return bootstrap_mean(values_a - values_b, counts)
