"""Input checks that all metrics share: what comes in is float64, of the right shape, and free of NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError

__all__ = [
    "Array",
    "IntArray",
    "labels",
    "log_prob_array",
    "normalised",
    "numbers",
    "same_length",
    "unit_interval",
    "vector",
]

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


def numbers(name: str, values: Any, cure: str = "all need as many") -> Array:
    """Return ``values`` as a float64 array of whatever shape; ``cure`` says what to do about rows of unequal lengths.

    Raises:
        DataError: Rows of unequal lengths, or something that is no number.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: {_uneven(values, cure) or f'expected numbers, {error}'}") from None


def _uneven(values: Any, cure: str) -> str | None:
    """What keeps nested sequences from being an array; None where they are one."""
    level = [values]
    while all(map(_is_row, level)):
        sizes = {len(entry) for entry in level}
        if len(sizes) > 1:
            return f"rows have {min(sizes)} to {max(sizes)} entries; {cure}"
        level = [inner for entry in level for inner in entry]
        if not level:
            return None
    return "some entries are rows and some are not" if any(map(_is_row, level)) else None


def _is_row(entry: Any) -> bool:
    """Whether an entry has entries of its own."""
    if isinstance(entry, np.ndarray):
        return entry.ndim > 0
    return isinstance(entry, Sequence) and not isinstance(entry, (str, bytes))


def vector(name: str, values: Any) -> Array:
    """Return ``values`` as a float64 array of shape ``(N,)``.

    Raises:
        DataError: It is not one-dimensional, is empty, or holds NaN or no numbers.
    """
    array = numbers(name, values)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name} must be a non-empty 1-D array, got shape {array.shape}")
    if np.isnan(array).any():
        raise DataError(
            f"{name} holds {int(np.isnan(array).sum())} NaN of {array.size} values; the model may have diverged"
        )
    return array


def unit_interval(name: str, values: Any) -> Array:
    """Return ``values`` as a vector whose entries lie in [0, 1].

    Raises:
        DataError: An entry lies outside [0, 1]; log-probabilities passed by mistake are the usual cause.
    """
    array = vector(name, values)
    if array.min() < 0 or array.max() > 1:
        raise DataError(
            f"{name} must lie in [0, 1], got {array.min():.3g} to {array.max():.3g}; were log-probabilities passed?"
        )
    return array


def same_length(**arrays: NDArray[Any]) -> None:
    """Check that all named arrays have the same first dimension.

    Raises:
        DataError: They differ.
    """
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"arrays must have one entry per item, got lengths {sizes}")


def log_prob_array(name: str, values: Any, ndim: int) -> Array:
    """Return ``values`` as float64 log-probabilities whose last axis is the K choices.

    Raises:
        DataError: Wrong number of dimensions, empty, NaN, no numbers, a value above zero, or rows of unequal lengths:
            items with fewer choices are padded with -inf.
    """
    array = numbers(name, values, "pad items that have fewer choices with -inf")
    if array.ndim != ndim or array.size == 0:
        raise DataError(f"{name} must be a non-empty {ndim}-D array, got shape {array.shape}")
    if np.isnan(array).any():
        raise DataError(f"{name} holds NaN; the model may have diverged")
    if array.max() > 1e-6:
        raise DataError(
            f"{name} must be log-probabilities (<= 0), got {array.max():.3g}; were logits passed?"
        )
    return array


def normalised(name: str, values: Any, ndim: int) -> Array:
    """Return ``values`` as float64 log-probabilities that sum to one over the last axis.

    Raises:
        DataError: As for ``log_prob_array``, or probabilities whose sum is off by more than .001.
    """
    array = log_prob_array(name, values, ndim)
    total = np.exp(array).sum(axis=-1)
    off = np.abs(total - 1) > 1e-3
    if off.any():
        raise DataError(
            f"{name} must sum to 1 over the choices, got {total[off][0]:.4g} in {int(off.sum())} of {total.size} rows"
        )
    return array


def labels(values: Any, log_probs: Array) -> IntArray:
    """Return ``values`` as indices into the K choices of ``log_probs``, shape ``(N,)``.

    Raises:
        DataError: Lengths differ or an index lies outside ``0 … K-1``.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = numbers("labels", values)  # which says what is wrong with the rows
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise DataError(f"labels must be a 1-D array of integers, got {array.dtype} of shape {array.shape}")
    same_length(log_probs=log_probs, labels=array)
    if array.size and (array.min() < 0 or array.max() >= log_probs.shape[1]):
        raise DataError(f"labels must lie in 0…{log_probs.shape[1] - 1}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)
