"""Calibration of every class, not only of the predicted one: errors of p_k against 1[y = k], averaged over classes.

    class-wise ECE = (1/K) sum_k ECE(p_k, 1[y = k])                    (Kull et al. 2019, arXiv:1910.12656)
    marginal L2    = ((1/K) sum_k max(0, CE_k^2))^(1/2)                (Kumar et al. 2019, arXiv:1909.10155)

For classification, where class k means the same thing for every item. The choices of a question have no identity but
their position, so there these numbers only show a preference for a letter.
Notation: ``log_probs`` (N, K), ``label`` (N,).
"""

from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, labels, normalised
from vlora.eval.metrics.calibration import Scheme, calibration, debiased_l2

__all__ = ["classwise_ece", "marginal_debiased_l2"]


def classwise_ece(log_probs: Any, label: Any, num_bins: int = 15, scheme: Scheme = "equal_width") -> Array:
    """ECE of the probability of each class against whether it is the right one.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right class, shape ``(N,)``.
        num_bins: Number of bins per class.
        scheme: ``equal_width`` or ``equal_mass``, see ``calibration``.

    Returns:
        Errors of shape ``(K,)``, in [0, 1], lower is better; their mean is the class-wise ECE.

    Raises:
        DataError: Shapes differ, NaN, rows that do not sum to one, or a label out of range.
    """
    probs, right = _one_against_rest(log_probs, label)
    return np.array([calibration(p, r, num_bins, scheme).ece for p, r in zip(probs.T, right.T, strict=True)])


def marginal_debiased_l2(
    log_probs: Any, label: Any, num_bins: int = 15, scheme: Scheme = "equal_mass"
) -> float:
    """Root of the mean over classes of the squared debiased calibration error, in [0, 1], lower is better.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right class, shape ``(N,)``.
        num_bins: Number of bins per class.
        scheme: ``equal_width`` or ``equal_mass``, see ``calibration``.

    Returns:
        The error.

    Raises:
        DataError: Shapes differ, NaN, rows that do not sum to one, or a label out of range.
    """
    probs, right = _one_against_rest(log_probs, label)
    errors = [debiased_l2(calibration(p, r, num_bins, scheme)) for p, r in zip(probs.T, right.T, strict=True)]
    return float(np.mean(np.square(errors)) ** 0.5)


def _one_against_rest(log_probs: Any, label: Any) -> tuple[Array, Array]:
    """Probability of every class and whether it is the right one, both ``(N, K)``."""
    log_probs = normalised("log_probs", log_probs, 2)
    label = labels(label, log_probs)
    return np.minimum(np.exp(log_probs), 1.0), np.eye(log_probs.shape[1])[label]
