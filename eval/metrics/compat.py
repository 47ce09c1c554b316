"""Calibration errors as other packages count them, for setting a number beside one that was published with them.

Ours is :func:`vlora.eval.metrics.calibration.calibration`. These differ on purpose, in ways that their documentation
does not say; each rule was read in the package and agrees with its output (``tests/eval/metrics/peers``).

    torchmetrics    bins [a, b), and a confidence of exactly 1 in a bin of its own behind the last (1.9.0)
    gpleiss         bins (a, b], and a confidence of exactly 0 in none (the script of Guo et al. 2017)
    netcal_ace      mean over occupied bins of equal width, every bin counting the same (ACE of netcal 1.4.0)
    helm            bins of equal count; HELM's ``ece_10_bin`` is this with ten

Nothing else in vlora uses them.
"""

from typing import Any, Literal

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, same_length, unit_interval
from vlora.eval.metrics.calibration import calibration

__all__ = ["Package", "ece_as"]

Package = Literal["torchmetrics", "gpleiss", "netcal_ace", "helm"]


def ece_as(package: Package, confidence: Any, correct: Any, num_bins: int) -> float:
    """Calibration error by the rule of another package.

    Args:
        package: Whose number is wanted.
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.
        num_bins: Number of bins; their defaults are 15, 15, 10 and 10.

    Returns:
        The error, in [0, 1], lower is better.

    Raises:
        DataError: Lengths differ, empty, NaN, values outside [0, 1], or a package that is not among the four.
    """
    confidence, correct = unit_interval("confidence", confidence), unit_interval("correct", correct)
    same_length(confidence=confidence, correct=correct)
    if package == "helm":
        return calibration(confidence, correct, num_bins, "equal_mass").ece
    if package == "torchmetrics":
        edges = np.linspace(0, 1, num_bins + 1)
        return _gap(np.searchsorted(edges, confidence, side="right") - 1, confidence, correct)
    if package == "gpleiss":
        index = np.searchsorted(np.linspace(0, 1, num_bins + 1), confidence, side="left") - 1
        return _gap(np.where(confidence > 0, index, -1), confidence, correct)
    if package == "netcal_ace":
        bins = calibration(confidence, correct, num_bins)
        used = bins.count > 0
        return float(np.abs(bins.accuracy[used] - bins.confidence[used]).mean())
    raise DataError(f"expected torchmetrics, gpleiss, netcal_ace or helm, got {package!r}")


def _gap(index: IntArray, confidence: Array, correct: Array) -> float:
    """Sum over bins of |sum of correct - sum of confidence| / N; a negative index is in no bin."""
    kept = index >= 0
    if not kept.any():
        return 0.0
    gaps = np.bincount(index[kept], (correct - confidence)[kept])
    return float(np.abs(gaps).sum() / len(confidence))
