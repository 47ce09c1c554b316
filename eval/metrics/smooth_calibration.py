"""Smooth calibration error: a calibration error without bins, whose bandwidth sets itself.

    r_sigma(t)    = (1/N) sum_i K_sigma(t, f_i) (y_i - f_i),        t in [0, 1]
    smECE_sigma   = integral_0^1 |r_sigma(t)| dt
    smECE         = the sigma at which smECE_sigma = sigma

K_sigma is the Gaussian kernel reflected at 0 and 1 without end (Blasiok & Nakkiran 2023, arXiv:2309.12236, sec. 3).
Smoothing can only shrink an integral of |r|, so smECE_sigma falls in sigma and the fixed point is unique. K is the heat
kernel of [0, 1] with closed ends, whose eigenfunctions are cosines:

    r_sigma(t) = c_0 + 2 sum_k c_k exp(-(k pi sigma)^2 / 2) cos(k pi t),    c_k = (1/N) sum_i (y_i - f_i) cos(k pi f_i)

so one cosine transform serves every bandwidth. f is the confidence, y the correctness, both ``(N,)``.

The number of relplot 1.0.3 differs in the third digit: it cuts the kernel at .5, weighs the ends of [0, 1] like inner
points of its mesh, and counts predictions of exactly 0 or 1 half.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, same_length, unit_interval
from vlora.eval.metrics.calibration import CalibrationFloor

__all__ = [
    "smooth_ece",
    "smooth_ece_at",
    "smooth_ece_floor",
    "smooth_ece_of_clusters",
    "smooth_ece_resampled",
]

_NODES = 8192  # of one evaluation: exact to about (node distance / bandwidth)^2 / 8
_RESAMPLED_NODES = 512  # of resamples, many of them at once: to about 5e-5 at a bandwidth of .1
_STEPS = 30  # halvings of [0, 1]


def smooth_ece(confidence: Any, correct: Any) -> float:
    """Smooth calibration error with its own bandwidth, in [0, 1], lower is better.

    At least the absolute calibration gap, and within constants of the distance to the nearest perfectly calibrated
    predictor, which no binned error is. Like them it is above zero for a calibrated model on few items:
    see ``smooth_ece_floor``.

    Args:
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.

    Returns:
        The fixed point.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    confidence, correct = _inputs(confidence, correct)
    return float(_solve(_transform(confidence, correct - confidence, None, _NODES))[0])


def smooth_ece_at(confidence: Any, correct: Any, bandwidth: float) -> float:
    """Smooth calibration error at a given bandwidth, integral of |r_sigma|; in [0, 1], lower is better.

    Args:
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        correct: Whether it was right, in [0, 1]. Shape ``(N,)``.
        bandwidth: Sigma of the kernel, > 0, in units of confidence.

    Returns:
        The integral.

    Raises:
        DataError: Lengths differ, empty, NaN, values outside [0, 1], or a bandwidth that is not above zero.
    """
    if not bandwidth > 0:
        raise DataError(f"bandwidth must be > 0, got {bandwidth}")
    confidence, correct = _inputs(confidence, correct)
    spectrum = _transform(confidence, correct - confidence, None, _NODES)
    return float(_integral(spectrum, np.array([bandwidth]))[0])


def smooth_ece_resampled(confidence: Array, correct: Array, weights: Array) -> Array:
    """Smooth calibration error of B resamples, each with a bandwidth of its own.

    Args:
        confidence: Values in [0, 1], shape ``(N,)``.
        correct: Values in [0, 1], shape ``(N,)``.
        weights: Count of every item in every resample, shape ``(B, N)``.

    Returns:
        Errors of shape ``(B,)``, on a coarser mesh than ``smooth_ece``.
    """
    return _solve(_transform(confidence, correct - confidence, weights, _RESAMPLED_NODES))


def smooth_ece_of_clusters(confidence: Array, correct: Array, cluster: IntArray) -> Callable[[Array], Array]:
    """Smooth calibration error of resamples of whole clusters, such as the tokens of a text.

    Args:
        confidence: Values in [0, 1], shape ``(N,)``.
        correct: Values in [0, 1], shape ``(N,)``.
        cluster: Cluster of every value, 0 … C-1, shape ``(N,)``.

    Returns:
        Function of the count of every cluster in every resample, ``(B, C)``, that gives errors ``(B,)``, on the mesh of
        ``smooth_ece_resampled``. It holds C times 513 numbers, whatever N.
    """
    size = np.bincount(cluster).astype(np.float64)
    mesh = _on_mesh(confidence, correct - confidence, cluster, len(size), _RESAMPLED_NODES)

    def statistic(weights: Array) -> Array:
        return _solve(_spectrum(weights @ mesh / (weights @ size)[:, None]))

    return statistic


def smooth_ece_floor(confidence: Any, *, num_simulations: int = 400, seed: int = 0) -> CalibrationFloor:
    """Smooth calibration error of a perfectly calibrated model on these confidences, simulated.

    Args:
        confidence: Probability of the predicted choice, in [0, 1]. Shape ``(N,)``.
        num_simulations: Simulated label sets, right ~ Bernoulli(confidence).
        seed: Seed of numpy's ``default_rng``.

    Returns:
        Mean and 95 % quantile.

    Raises:
        DataError: Empty, NaN, or values outside [0, 1].
    """
    confidence, _ = _inputs(confidence, confidence)
    rng = np.random.default_rng(seed)
    errors, block = [], max(1, (1 << 17) // len(confidence))
    for done in range(0, num_simulations, block):
        shape = (min(block, num_simulations - done), len(confidence))
        gaps = (rng.random(shape, dtype=np.float32) < confidence) - confidence
        errors.append(_solve(_transform(confidence, gaps, None, _RESAMPLED_NODES)))
    errors = np.concatenate(errors)
    return CalibrationFloor(float(errors.mean()), float(np.quantile(errors, 0.95)))


def _inputs(confidence: Any, correct: Any) -> tuple[Array, Array]:
    confidence, correct = unit_interval("confidence", confidence), unit_interval("correct", correct)
    same_length(confidence=confidence, correct=correct)
    return confidence, correct


def _transform(confidence: Array, gap: Array, weights: Array | None, nodes: int) -> Array:
    """Cosine coefficients c_0 … c_nodes of the gaps, ``(B, nodes + 1)``; ``gap`` is ``(N,)`` or ``(B, N)``."""
    values = np.atleast_2d(gap if weights is None else weights * gap)
    total = len(confidence) if weights is None else weights.sum(axis=1, keepdims=True)
    mesh = _on_mesh(confidence, values, np.arange(len(values))[:, None], len(values), nodes)
    return _spectrum(mesh / total)


def _on_mesh(confidence: Array, gap: Array, row: IntArray, rows: int, nodes: int) -> Array:
    """Sums of gaps by row, ``(rows, nodes + 1)``; each is shared between the two mesh points beside its confidence."""
    left = np.minimum((confidence * nodes).astype(np.int64), nodes - 1)
    share, width = confidence * nodes - left, nodes + 1
    index = (left + width * row).ravel()
    mesh = np.bincount(index, (gap * (1 - share)).ravel(), rows * width)
    mesh = mesh + np.bincount(index + 1, (gap * share).ravel(), rows * width)
    return mesh.reshape(rows, width).astype(np.float64, copy=False)


def _spectrum(mesh: Array) -> Array:
    """Cosine coefficients of mean gaps on the mesh, by row."""
    return np.fft.rfft(mesh, 2 * (mesh.shape[1] - 1), axis=1).real


def _integral(spectrum: Array, bandwidth: Array) -> Array:
    """Integral of |r_sigma| per row, ``(B,)``, by the trapezoid rule over the mesh."""
    nodes = spectrum.shape[1] - 1
    damping = np.exp(-((np.arange(nodes + 1) * np.pi * bandwidth[:, None]) ** 2) / 2)
    # The inverse transform of period 2 is r / (2 nodes): mesh points inside count twice, the two ends once.
    smoothed = np.abs(np.fft.irfft(spectrum * damping, 2 * nodes, axis=1))
    return 2 * smoothed[:, 1:nodes].sum(axis=1) + smoothed[:, 0] + smoothed[:, nodes]


def _solve(spectrum: Array) -> Array:
    """Bandwidth at which the integral equals it, per row, by bisection."""
    low, high = np.zeros(len(spectrum)), np.ones(len(spectrum))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = _integral(spectrum, middle) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2
