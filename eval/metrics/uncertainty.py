"""Predictive uncertainty of posterior draws and its split into aleatoric and epistemic parts, in nats.

    H(p_bar)  =  (1/S) sum_s H(p_s)  +  (1/S) sum_s KL(p_s || p_bar),      p_bar = (1/S) sum_s p_s
    total        expected (aleatoric)   mutual information (epistemic)

With its mirror image, the reverse mutual information (1/S) sum_s KL(p_bar || p_s), the last part adds up to the
expected pairwise divergence (1/S^2) sum_{s,t} KL(p_s || p_t).

Sources: Houlsby et al. 2011, arXiv:1112.5745 (mutual information); Depeweg et al. 2018, arXiv:1710.07283 (the split);
Malinin & Gales 2021, arXiv:2002.07650 (reverse information and pairwise divergence).
What the draws would answer if each had one vote: Freeman 1965 (variation ratio).
Notation: ``sample_log_probs`` (S, N, K) is log p_s(k | x), ``mixture`` (N, K) is log p_bar.
"""

from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, normalised

__all__ = [
    "chosen_std",
    "disagreement",
    "entropy",
    "expected_entropy",
    "expected_pairwise_kl",
    "kl_from_mean",
    "mixture_log_probs",
    "mutual_information",
    "reverse_mutual_information",
    "variation_ratio",
]


def _plogp(log_probs: Array) -> Array:
    """Elementwise p log p, with the limit 0 at p = 0."""
    return np.exp(log_probs) * np.where(np.isneginf(log_probs), 0.0, log_probs)


def mixture_log_probs(sample_log_probs: Any) -> Array:
    """Log of the mean probability over draws, log (1/S) sum_s p_s(k), by a shifted log-sum-exp.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.

    Returns:
        Log-probabilities of shape ``(N, K)``; exactly those of a draw when all draws agree.

    Raises:
        DataError: Wrong shape or NaN.
    """
    return _mixture(normalised("sample_log_probs", sample_log_probs, 3))


def _mixture(samples: Array) -> Array:
    top = samples.max(axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(samples - shift).mean(axis=0))


def entropy(log_probs: Any) -> Array:
    """Shannon entropy -sum_k p_k log p_k per item.

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.

    Returns:
        Nats in [0, log K], shape ``(N,)``; higher is less certain.

    Raises:
        DataError: Wrong shape or NaN.
    """
    return np.maximum(-_plogp(normalised("log_probs", log_probs, 2)).sum(axis=-1), 0.0)


def expected_entropy(sample_log_probs: Any) -> Array:
    """Mean entropy of the draws, (1/S) sum_s H(p_s): the aleatoric part.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.

    Returns:
        Nats, shape ``(N,)``.

    Raises:
        DataError: Wrong shape or NaN.
    """
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    return np.maximum(-_plogp(samples).sum(axis=-1), 0.0).mean(axis=0)


def mutual_information(sample_log_probs: Any, *, antithetic: bool = False, corrected: bool = True) -> Array:
    """Mutual information of answer and parameters, (1/S) sum_s KL(p_s || p_bar): the epistemic part.

    The divergence form never goes below zero, which the difference of two entropies does. With S independent draws
    the plug-in value is low by a factor of about (S-1)/S, so it is multiplied by S/(S-1); antithetic pairs cancel that
    bias themselves and are left alone. The corrected value no longer adds up with ``expected_entropy`` to the total.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        antithetic: Draws 2j and 2j+1 are mean + e_j and mean - e_j.
        corrected: Apply S/(S-1) to independent draws; ``False`` gives the plug-in value.

    Returns:
        Nats >= 0, shape ``(N,)``; NaN for a single independent draw when corrected, which says nothing about it.

    Raises:
        DataError: Wrong shape or NaN.
    """
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    mixture = _mixture(samples)
    with np.errstate(invalid="ignore"):  # -inf - -inf, masked below
        log_ratio = np.where(np.isneginf(samples), 0.0, samples - mixture)
    divergence = np.maximum((np.exp(samples) * log_ratio).sum(axis=-1), 0.0).mean(axis=0)
    return _corrected(divergence, len(samples), antithetic, corrected)


def reverse_mutual_information(
    sample_log_probs: Any, *, antithetic: bool = False, corrected: bool = True
) -> Array:
    """Reverse mutual information (1/S) sum_s KL(p_bar || p_s): epistemic, and large where some draw rules out much.

    Its plug-in value from S independent draws is low by the factor of the mutual information, to second order in
    their spread, and is corrected alike. One impossible choice that another draw allows makes it infinite.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        antithetic: Draws 2j and 2j+1 are mean + e_j and mean - e_j.
        corrected: Apply S/(S-1) to independent draws; ``False`` gives the plug-in value.

    Returns:
        Nats >= 0, shape ``(N,)``; NaN for a single independent draw when corrected.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    mixture = _mixture(samples)
    with np.errstate(invalid="ignore"):  # -inf - -inf, masked
        log_ratio = np.where(np.isneginf(mixture), 0.0, mixture - samples.mean(axis=0))
    divergence = np.maximum((np.exp(mixture) * log_ratio).sum(axis=-1), 0.0)
    return _corrected(divergence, len(samples), antithetic, corrected)


def expected_pairwise_kl(sample_log_probs: Any, *, antithetic: bool = False, corrected: bool = True) -> Array:
    """Mean divergence KL(p_s || p_t) of two draws: mutual plus reverse mutual information, exactly.

    Over pairs of different draws, s != t, unbiased for independent draws at any S, which is the plug-in value over all
    S^2 pairs x S/(S-1). Antithetic draws are further apart in their own pair than in others, which makes up for
    the zeros s = t: there, and uncorrected, the mean is over all pairs. One impossible choice that another draw allows
    makes it infinite, which the mutual information never is.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        antithetic: Draws 2j and 2j+1 are mean + e_j and mean - e_j.
        corrected: Leave pairs s = t out for independent draws; ``False`` gives the plug-in value.

    Returns:
        Nats >= 0, shape ``(N,)``; NaN for a single independent draw when corrected.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    parts = [
        information(sample_log_probs, antithetic=antithetic, corrected=corrected)
        for information in (mutual_information, reverse_mutual_information)
    ]
    return parts[0] + parts[1]


def _corrected(divergence: Array, num_samples: int, antithetic: bool, corrected: bool) -> Array:
    """A mean over draws of their divergence from the mixture, x S/(S-1) for independent draws where corrected."""
    if not corrected or antithetic:
        return divergence
    if num_samples == 1:
        return np.full_like(divergence, np.nan)
    return divergence * (num_samples / (num_samples - 1))


def chosen_std(sample_log_probs: Any) -> Array:
    """Standard deviation over draws of the probability of the chosen class, sd_s p_s(k*) with S - 1.

    The chosen class k* is the most probable one of the mixture, the first of several.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.

    Returns:
        Values in [0, sqrt(S / (S - 1)) / 2], shape ``(N,)``; higher is less certain; NaN for a single draw.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    if len(samples) == 1:
        return np.full(samples.shape[1], np.nan)
    chosen = mixture_log_probs(samples).argmax(axis=1)
    return np.exp(samples[:, np.arange(samples.shape[1]), chosen]).std(axis=0, ddof=1)


def kl_from_mean(sample_log_probs: Any, mean_log_probs: Any) -> Array:
    """Divergence of the mixture of draws from the prediction at the posterior mean, KL(p_bar || p_mean).

    Whether sampling does anything: where it is near 0 everywhere, the draws predict what the mean does.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.
        mean_log_probs: Log-probabilities at the mean, shape ``(N, K)``.

    Returns:
        Nats >= 0, shape ``(N,)``; infinite where the mean rules a choice out that a draw allows.

    Raises:
        DataError: Shapes differ, NaN, or rows that do not sum to one.
    """
    mixture = mixture_log_probs(sample_log_probs)
    at_mean = normalised("mean_log_probs", mean_log_probs, 2)
    if at_mean.shape != mixture.shape:
        raise DataError(f"mean_log_probs must have shape {mixture.shape} as the draws, got {at_mean.shape}")
    with np.errstate(invalid="ignore"):  # -inf - -inf, masked
        log_ratio = np.where(np.isneginf(mixture), 0.0, mixture - at_mean)
    return np.maximum((np.exp(mixture) * log_ratio).sum(axis=1), 0.0)


def variation_ratio(sample_log_probs: Any) -> Array:
    """Share of draws that do not vote for the most popular choice, 1 - max_k (votes_k / S).

    A draw with several most probable choices splits its vote among them.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.

    Returns:
        Values in [0, 1 - 1/K], shape ``(N,)``; higher is less certain.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    return np.maximum(1 - _votes(sample_log_probs).mean(axis=0).max(axis=1), 0.0)


def disagreement(sample_log_probs: Any) -> Array:
    """Chance that two different draws answer differently, mean over pairs s != t.

    A draw with several most probable choices answers one of them at random.

    Args:
        sample_log_probs: Log-probabilities per draw, shape ``(S, N, K)``.

    Returns:
        Values in [0, 1], shape ``(N,)``; higher is less certain; NaN for a single draw.

    Raises:
        DataError: Wrong shape, NaN, or rows that do not sum to one.
    """
    votes = _votes(sample_log_probs)
    num_samples = len(votes)
    if num_samples == 1:
        return np.full(votes.shape[1], np.nan)
    same = np.square(votes.sum(axis=0)).sum(axis=1) - np.square(votes).sum(axis=(0, 2))
    return np.maximum(1 - same / (num_samples * (num_samples - 1)), 0.0)


def _votes(sample_log_probs: Any) -> Array:
    """Vote of every draw, ``(S, N, K)``, rows summing to one."""
    samples = normalised("sample_log_probs", sample_log_probs, 3)
    top = samples == samples.max(axis=-1, keepdims=True)
    return top / top.sum(axis=-1, keepdims=True)
