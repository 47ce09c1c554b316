r"""Semantic entropy: the spread of sampled answers over meanings, and how much of it is the posterior's.

With M answers in clusters c(m):

    discrete           -sum_c (n_c / M) log (n_c / M)                     (Farquhar et al. 2024, "discrete")
    Rao-Blackwellised  w_m = p~(y_m) / sum_m p~(y_m),  P_c = sum_{m in c} w_m,  -sum_c P_c log P_c
                       with p~ the length-normalised likelihood              (Farquhar et al. 2024)
    Kuhn               -(1/C) sum_c log sum_{m in c} p(y_m)                   (Kuhn et al. 2023, eq. 8)

Split by posterior draws (ours): answers of all draws are clustered jointly, P_s(c) is draw s's share of cluster c, and

    H(P_bar)  =  (1/S) sum_s H(P_s)  +  (1/S) sum_s KL(P_s || P_bar)
    total        within a draw          semantic mutual information

P_s(c) is Rao-Blackwellised: every distinct answer y of the pool is scored under every draw and P_s(c) ~ sum_{y in c}
p_s(y). Or it is counted, n_{s,c} / M, for models without likelihoods. Counting needs M >> C: the entropy of few answers
is low by about (C-1)/(2M), which appears as mutual information that is not there, the more the more meanings there
are. ``counted_split`` takes out what chance alone would show, the mean over all ways to deal the same answers to the
draws (hypergeometric; Vinh et al. 2010, JMLR 11:2837, eq. 24, "adjusted for chance").
"""

from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray, numbers, same_length, vector
from vlora.eval.metrics.uncertainty import entropy, expected_entropy, mixture_log_probs, mutual_information

__all__ = [
    "SemanticSplit",
    "chance_information",
    "cluster_shares",
    "counted_split",
    "kuhn_entropy",
    "scored_cluster_shares",
    "semantic_entropy",
    "semantic_split",
    "weighted_semantic_entropy",
]


class SemanticSplit(dict[str, float]):
    """``total``, ``expected`` (within a draw, aleatoric) and ``mutual_information`` (epistemic), in nats."""


def _clusters(clusters: Any) -> IntArray:
    array = np.asarray(clusters)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer) or array.min() < 0:
        raise DataError(f"clusters must be a non-empty list of numbers from 0, got {array.tolist()!r:.60}")
    return array.astype(np.int64)


def _log(probs: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(probs)


def semantic_entropy(clusters: Any) -> float:
    """Discrete semantic entropy, from the sizes of the clusters alone.

    Args:
        clusters: Cluster of every sampled answer, shape ``(M,)``; repeated answers count each time.

    Returns:
        Nats in [0, log M]; higher is less certain. Low by about (C - 1) / (2M) against infinitely many answers.

    Raises:
        DataError: Empty, or not cluster numbers.
    """
    counts = np.bincount(_clusters(clusters))
    return float(entropy(_log(counts[None] / counts.sum()))[0])


def weighted_semantic_entropy(clusters: Any, log_likelihoods: Any) -> float:
    """Rao-Blackwellised semantic entropy: clusters weigh by the likelihood of their answers.

    Args:
        clusters: Cluster of every answer, shape ``(M,)``.
        log_likelihoods: Log-likelihood of every answer, shape ``(M,)``: length-normalised as in the paper, or of
            whole strings, then of distinct ones (a repeated string would count twice).

    Returns:
        Nats in [0, log C]; higher is less certain.

    Raises:
        DataError: Lengths differ, empty, NaN, or all likelihoods zero.
    """
    clusters, scores = _clusters(clusters), vector("log-likelihoods", log_likelihoods)
    same_length(clusters=clusters, log_likelihoods=scores)
    return float(entropy(_log(_normalised_sums(clusters, scores))[None])[0])


def kuhn_entropy(clusters: Any, log_likelihoods: Any) -> float:
    """``-(1/C) sum_c log sum_{m in c} p(y_m)``, the Monte Carlo form of 2023: a mean over clusters, unnormalised.

    Args:
        clusters: Cluster of every answer, shape ``(M,)``.
        log_likelihoods: Log-likelihood of every answer, shape ``(M,)``.

    Returns:
        A score in nats; higher is less certain. Not comparable with the other two.

    Raises:
        DataError: Lengths differ, empty, or NaN.
    """
    clusters, scores = _clusters(clusters), vector("log-likelihoods", log_likelihoods)
    same_length(clusters=clusters, log_likelihoods=scores)
    sums = [np.logaddexp.reduce(scores[clusters == c]) for c in np.unique(clusters)]
    return float(-np.mean(sums))


def _normalised_sums(clusters: IntArray, scores: Array) -> Array:
    """``P_c ~ sum_{m in c} exp(score_m)``, shifted by the largest score so that nothing underflows."""
    top = scores.max()
    if np.isneginf(top):
        raise DataError("no answer has a likelihood above zero, so their meanings cannot be weighed")
    sums = np.bincount(clusters, weights=np.exp(scores - top))
    return sums / sums.sum()


def cluster_shares(clusters: Any, draws: Any) -> Array:
    """Share of every cluster in the answers of every draw, by counting.

    Args:
        clusters: Cluster of every answer of all draws, shape ``(A,)``.
        draws: Draw of every answer, numbers 0 … S-1, shape ``(A,)``; every draw has an answer.

    Returns:
        P_s(c), shape ``(S, C)``, rows summing to one.

    Raises:
        DataError: Lengths differ, or a draw without answers.
    """
    clusters, draws = _clusters(clusters), _clusters(draws)
    same_length(clusters=clusters, draws=draws)
    counts = np.zeros((draws.max() + 1, clusters.max() + 1))
    np.add.at(counts, (draws, clusters), 1.0)
    if not counts.sum(axis=1).all():
        missing = np.flatnonzero(counts.sum(axis=1) == 0)
        raise DataError(f"draw {missing[0]} has no answer; every draw needs at least one")
    return counts / counts.sum(axis=1, keepdims=True)


def chance_information(clusters: Any, draws: Any) -> float:
    """Mutual information of cluster and draw that counting shows when there is none.

    The mean of the plug-in value over all assignments of these answers to draws of these sizes:
    ``sum_{c,s} sum_n (n/A) log(A n / (a_c b_s)) P(n)``, n hypergeometric: b_s drawn of A, of which a_c mean c.

    Args:
        clusters: Cluster of every answer of all draws, shape ``(A,)``.
        draws: Draw of every answer, shape ``(A,)``.

    Returns:
        Nats >= 0.

    Raises:
        DataError: Lengths differ, or not cluster numbers.
    """
    clusters, draws = _clusters(clusters), _clusters(draws)
    same_length(clusters=clusters, draws=draws)
    total, sizes = len(clusters), np.bincount(draws)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])  # log n!
    found = 0.0
    # meanings and draws of equal size have equal terms
    for a, times_a in zip(*np.unique(np.bincount(clusters), return_counts=True), strict=True):
        for b, times_b in zip(*np.unique(sizes, return_counts=True), strict=True):
            n = np.arange(max(1, a + b - total), min(a, b) + 1)
            if not len(n):
                continue
            ways = logs[a] + logs[b] + logs[total - a] + logs[total - b] - logs[total]
            ways = ways - logs[n] - logs[a - n] - logs[b - n] - logs[total - a - b + n]
            found += times_a * times_b * float((n / total * np.log(total * n / (a * b)) * np.exp(ways)).sum())
    return max(found, 0.0)


def counted_split(clusters: Any, draws: Any) -> SemanticSplit:
    """The split from counted answers, with what chance alone shows moved from the information to the rest.

    Args:
        clusters: Cluster of every answer of all draws, shape ``(A,)``.
        draws: Draw of every answer, the same number under each, shape ``(A,)``.

    Returns:
        As :func:`semantic_split`; ``mutual_information`` may be a little below zero, and is NaN for one draw.

    Raises:
        DataError: Lengths differ, or a draw without answers.
    """
    shares = cluster_shares(clusters, draws)
    split = semantic_split(shares, antithetic=True)  # plug-in: chance covers the bias of finite S as well
    if len(shares) < 2:
        return SemanticSplit({**split, "mutual_information": float("nan")})
    information = split["mutual_information"] - chance_information(clusters, draws)
    return SemanticSplit(
        total=split["total"], expected=split["total"] - information, mutual_information=information
    )


def scored_cluster_shares(clusters: Any, draw_log_probs: Any) -> Array:
    """Share of every cluster under every draw, ``P_s(c) ~ sum_{y in c} p_s(y)`` over the pooled distinct answers.

    Args:
        clusters: Cluster of every distinct answer, shape ``(Y,)``.
        draw_log_probs: log p_s(y) of every distinct answer under every draw, shape ``(S, Y)``.

    Returns:
        P_s(c), shape ``(S, C)``, rows summing to one.

    Raises:
        DataError: Shapes differ, NaN, or a draw that gives every answer probability zero.
    """
    clusters, scores = _clusters(clusters), numbers("draw_log_probs", draw_log_probs)
    if scores.ndim != 2 or scores.shape[1] != len(clusters) or np.isnan(scores).any():
        raise DataError(f"draw_log_probs must be (S, {len(clusters)}) without NaN, got shape {scores.shape}")
    return np.stack([_normalised_sums(clusters, row) for row in scores])


def semantic_split(shares: Any, *, antithetic: bool = False) -> SemanticSplit:
    """Total semantic entropy, its mean within a draw, and the semantic mutual information of answer and parameters.

    Args:
        shares: P_s(c), shape ``(S, C)``, from :func:`cluster_shares` or :func:`scored_cluster_shares`.
        antithetic: Draws 2j and 2j+1 mirror each other; otherwise the mutual information is multiplied by S/(S-1)
            and no longer adds up with ``expected`` to ``total``.

    Returns:
        Three values in nats, higher is less certain; ``mutual_information`` is NaN for one draw, and is what only
        more training data could remove, the rest is ambiguity that each draw holds by itself.

    Raises:
        DataError: Not probabilities of shape ``(S, C)``.
    """
    samples = _log(numbers("shares", shares))[:, None]
    information = mutual_information(samples, antithetic=antithetic and len(samples) > 1)[0]
    return SemanticSplit(
        total=float(entropy(mixture_log_probs(samples))[0]),
        expected=float(expected_entropy(samples)[0]),
        mutual_information=float(information),
    )
