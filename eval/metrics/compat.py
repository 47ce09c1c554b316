"""Calibration errors as other packages count them, for setting a number beside one that was published with them.

Ours is :func:`vlora.eval.metrics.calibration.calibration`. These differ on purpose, in ways that their documentation
does not say; each rule was read in the package and agrees with its output (``tests/eval/metrics/peers``).

    torchmetrics    bins [a, b), and a confidence of exactly 1 in a bin of its own behind the last (1.9.0)
    gpleiss         bins (a, b], and a confidence of exactly 0 in none (the script of Guo et al. 2017)
    netcal_ace      mean over occupied bins of equal width, every bin counting the same (ACE of netcal 1.4.0)
    helm            bins of equal count; HELM's ``ece_10_bin`` is this with ten

Ours are :func:`~vlora.eval.metrics.calibration.debiased_l2`, :func:`~vlora.eval.metrics.smooth_calibration.smooth_ece`,
:func:`~vlora.eval.metrics.selective.aurc` and ``augrc`` for these:

    mass_bins       uncertainty-calibration 0.1.4: items in bins of equal count, larger bins first, ties parted
    smooth_ece_as   relplot 1.0.3: its mesh, a kernel cut at half the interval, inner weights at 0 and 1, ten halvings
    trapezoid_aurc, trapezoid_augrc
                    torch-uncertainty: the trapezoid rule over coverages 1/N ... 1, over their length 1 - 1/N

Nothing else in vlora uses them.
"""

from typing import Any, Literal

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, same_length, unit_interval
from vlora.eval.metrics.calibration import Calibration, calibration
from vlora.eval.metrics.selective import risk_coverage

__all__ = ["Package", "ece_as", "mass_bins", "smooth_ece_as", "trapezoid_augrc", "trapezoid_aurc"]

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
    confidence, correct = _pair(confidence, correct)
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


def mass_bins(confidence: Any, correct: Any, num_bins: int = 15) -> Calibration:
    """Bins of equal count as uncertainty-calibration lays them out; give them to ``debiased_l2``.

    Items are sorted and cut where they stand; the first N mod ``num_bins`` bins hold one item more, and equal
    confidences may be parted by the order in which they came.

    Args:
        confidence: Probability of the predicted choice, or of one class, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.
        num_bins: Number of bins; theirs is 15. At most N.

    Raises:
        DataError: Lengths differ, empty, NaN, values outside [0, 1], or more bins than items.
    """
    confidence, correct = _pair(confidence, correct)
    if not 1 <= num_bins <= len(confidence):
        raise DataError(f"num_bins must lie in 1 to {len(confidence)}, one item a bin, got {num_bins}")
    bins = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
    return Calibration(
        confidence=np.array([confidence[own].mean() for own in bins]),
        accuracy=np.array([correct[own].mean() for own in bins]),
        count=np.array([len(own) for own in bins], dtype=np.int64),
    )


def smooth_ece_as(package: Literal["relplot"], confidence: Any, correct: Any) -> float:
    """Smooth calibration error by the rule of another package.

    Args:
        package: ``relplot``, the only one.
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The error, in [0, 1], lower is better.

    Raises:
        DataError: Lengths differ, empty, NaN, values outside [0, 1], or another package.
    """
    if package != "relplot":
        raise DataError(f"expected relplot, got {package!r}")
    confidence, correct = _pair(confidence, correct)
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        below = middle < _relplot(confidence, correct, middle)
        low, high = (middle, high) if below else (low, middle)
    return _relplot(confidence, correct, high)


def _relplot(confidence: Array, correct: Array, bandwidth: float) -> float:
    """Mean absolute smoothed gap over a grid, relative to the smoothed density."""
    nodes = max(2000, round(20 / bandwidth)) // 2 + 1
    left = np.minimum((confidence * (nodes - 1)).astype(np.int64), nodes - 2)
    share, grid = confidence * (nodes - 1) - left, np.linspace(0, 1, nodes)
    kernel = np.exp(-((grid - 0.5) ** 2) / (2 * bandwidth**2))
    seen, smooth = np.linspace(0, 1, max(round(10 / bandwidth), 200)), []
    for values in (confidence - correct, np.ones(len(confidence))):
        mesh = np.bincount(left, values * (1 - share), nodes)
        mesh += np.bincount(left + 1, values * share, nodes)
        mirrored = np.concatenate([mesh[::-1][:-1], mesh, mesh[::-1][1:]])
        wide = np.convolve(mirrored, kernel, "valid")
        smooth.append(np.interp(seen, grid, wide[nodes // 2 : nodes // 2 + nodes]))
    return float(np.abs(smooth[0]).sum() / smooth[1].sum())


def trapezoid_aurc(uncertainty: Any, correct: Any) -> float:
    """AURC by the trapezoid rule, as torch-uncertainty takes it; lower is better.

    Args:
        uncertainty: Higher is less certain. Shape ``(N,)``, N at least 2.
        correct: Whether the answer is right, in [0, 1]. Shape ``(N,)``.

    Raises:
        DataError: Lengths differ, fewer than two items, or NaN.
    """
    return _trapezoid(uncertainty, correct, generalised=False)


def trapezoid_augrc(uncertainty: Any, correct: Any) -> float:
    """AUGRC by the trapezoid rule, as torch-uncertainty takes it; lower is better. Arguments as above."""
    return _trapezoid(uncertainty, correct, generalised=True)


def _trapezoid(uncertainty: Any, correct: Any, *, generalised: bool) -> float:
    curve = risk_coverage(uncertainty, correct)
    size = len(curve.risk)
    if size < 2:
        raise DataError(f"the trapezoid rule needs at least 2 items, got {size}")
    risk = curve.risk * curve.coverage if generalised else curve.risk
    return float((risk[1:] + risk[:-1]).sum() / 2 / (size - 1))


def _pair(confidence: Any, correct: Any) -> tuple[Array, Array]:
    confidence, correct = unit_interval("confidence", confidence), unit_interval("correct", correct)
    same_length(confidence=confidence, correct=correct)
    return confidence, correct


def _gap(index: IntArray, confidence: Array, correct: Array) -> float:
    """Sum over bins of |sum of correct - sum of confidence| / N; a negative index is in no bin."""
    kept = index >= 0
    if not kept.any():
        return 0.0
    gaps = np.bincount(index[kept], (correct - confidence)[kept])
    return float(np.abs(gaps).sum() / len(confidence))
