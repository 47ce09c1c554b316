"""The exact k-th largest magnitude of a tensor that is only ever seen tile by tile.

Magnitudes of float32 order like their bit patterns read as integers. A sample brackets the wanted pattern; one reading
pass counts what lies above the bracket and makes a histogram of the few patterns inside, usually with one bin per
pattern, which gives the exact answer. A wider bracket is narrowed by the next pass (a radix search), and a bracket that
missed is replaced by the side that holds the answer, so that the result never depends on the sample.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["KEEP_ALL", "KthLargest", "lowest_kept", "shrink"]

KEEP_ALL = -1.0
"""Limit of :func:`shrink` that keeps every entry."""

_LARGEST = 0x7FFFFFFF
_BINS = 20  # log2 of the number of bins
_DEVIATIONS = 5.0  # half width of the bracket in standard deviations of a sample quantile


class KthLargest:
    """Search for the k-th largest magnitude of one tensor.

    Args:
        count: k, at least 1.
        numel: Entries of the tensor.
        sample: Some of its entries, float32; all of them settle the search at once.
    """

    def __init__(self, count: int, numel: int, sample: Tensor) -> None:
        self.count, self.bits = count, -1
        self._compared = np.empty((2, 0), dtype=bool)
        patterns = _patterns(sample.abs())
        if patterns.size >= numel:
            self.bits = int(np.partition(patterns, numel - count)[numel - count])
            return
        share = 1 - count / numel
        slack = _DEVIATIONS * math.sqrt(share * (1 - share) / patterns.size) + 1 / patterns.size
        low, high = math.floor((share - slack) * patterns.size), math.ceil((share + slack) * patterns.size)
        inside = [k for k in (low, high) if 0 <= k < patterns.size]
        ordered = np.partition(patterns, inside) if inside else patterns
        self._set(
            int(ordered[low]) if low >= 0 else 0,
            int(ordered[high]) if high < patterns.size else _LARGEST,
        )

    @property
    def settled(self) -> bool:
        """Whether the answer, :attr:`bits`, is known."""
        return self.bits >= 0

    def add(self, magnitudes: Tensor) -> None:
        """Count one tile of a pass; non-negative float32. NaN and infinity count as the largest."""
        if self.settled:
            return
        patterns = _patterns(magnitudes)
        at_least, above = self._flags(patterns.size)
        np.greater_equal(patterns, np.int32(self._low), out=at_least)
        np.greater(patterns, np.int32(self._high), out=above)
        self._above += np.count_nonzero(above)
        inside = patterns[np.flatnonzero(np.not_equal(at_least, above, out=at_least))]
        np.add.at(self._histogram, (inside - np.int32(self._low)) >> self._shift, 1)

    def end_pass(self) -> None:
        """Use the counts of a whole pass: settle, or set the bracket of the next one."""
        if self.settled:
            return
        at_least = self._histogram[::-1].cumsum()
        at_least += self._above
        if self._above >= self.count:
            self._set(self._high + 1, _LARGEST)
        elif at_least[-1] < self.count:
            self._set(0, self._low - 1)
        else:
            found = self._histogram.size - 1 - int(np.searchsorted(at_least, self.count))
            low = self._low + (found << self._shift)
            if self._shift == 0:
                self.bits = low
            else:
                self._set(low, min(low + (1 << self._shift) - 1, self._high))

    def _flags(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Memory for two comparisons of a tile."""
        if self._compared.shape[1] < size:
            self._compared = np.empty((2, size), dtype=bool)
        first, second = self._compared[:, :size]
        return first, second

    def _set(self, low: int, high: int) -> None:
        self._low, self._high, self._above = low, high, 0
        self._shift = max(0, (high - low).bit_length() - _BINS)
        self._histogram = np.zeros(((high - low) >> self._shift) + 1, dtype=np.int64)


def lowest_kept(search: KthLargest) -> float:
    """Limit for :func:`shrink` that keeps magnitudes of at least the k-th largest."""
    if search.bits <= 0:
        return KEEP_ALL
    return float(np.int32(search.bits - 1).view(np.float32))


def shrink(tensor: Tensor, limits: float) -> Tensor:
    """Set entries of magnitude <= limit to zero, in place."""
    return tensor if limits < 0 else torch.hardshrink(tensor, limits, out=tensor)  # type: ignore[call-overload]


def _patterns(values: Tensor) -> np.ndarray:
    return values.view(torch.int32).numpy()
