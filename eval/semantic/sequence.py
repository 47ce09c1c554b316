r"""Uncertainty from token log-probabilities and entropies of one answer, or of several answers to one question.

    log p(y | x)     = sum_t log p(y_t | x, y_<t)              maximum sequence probability (MSP): minus this
    (1/T) log p(y|x)                                           length-normalised; its exp(-.) is the perplexity
    -(1/M) sum_m log p(y_m | x)                                Monte Carlo sequence entropy
    -(1/M) sum_m (1/T_m) log p(y_m | x)                        length-normalised entropy

Source: Malinin and Gales 2021, arXiv:2002.07650. With posterior draws theta_s, one theta for the whole string
(expectation of products, sec. 3 there):

    log p_EP(y) = log (1/S) sum_s p_s(y),      RMI(y) = (1/S) sum_s [log p_EP(y) - log p_s(y)]   (reverse mutual
                                                                                        information, one string)
An answer has at least one scored token: where it ended by itself, its stop token counts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, vector

__all__ = [
    "answer_mixture",
    "least_likely_token",
    "length_normalised_entropy",
    "max_token_entropy",
    "mean_token_entropy",
    "monte_carlo_entropy",
    "negative_log_likelihood",
    "perplexity",
    "reverse_information",
    "spread_of_draws",
    "token_nll",
]


def _token_log_probs(values: Any) -> Array:
    array = vector("token log-probabilities", values)
    if array.max() > 1e-6:
        raise DataError(
            f"token log-probabilities must be <= 0, got {array.max():.3g}; were probabilities or logits passed?"
        )
    return array


def negative_log_likelihood(token_log_probs: Any) -> float:
    """``-log p(y | x)`` of one answer, the maximum-sequence-probability score.

    Args:
        token_log_probs: log p(y_t | x, y_<t), untempered. Shape ``(T,)``.

    Returns:
        Nats >= 0; higher is less certain. Long answers score higher for their length alone.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    return float(-_token_log_probs(token_log_probs).sum())


def token_nll(token_log_probs: Any) -> float:
    """``-(1/T) log p(y | x)``, the length-normalised likelihood.

    Args:
        token_log_probs: As for :func:`negative_log_likelihood`.

    Returns:
        Nats per token >= 0; higher is less certain. One bad token of many hides in it.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    return float(-_token_log_probs(token_log_probs).mean())


def perplexity(token_log_probs: Any) -> float:
    """``exp(-(1/T) log p(y | x))``, in [1, inf); higher is less certain; ranks as :func:`token_nll`.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(token_nll(token_log_probs)))


def least_likely_token(token_log_probs: Any) -> float:
    """``-min_t log p(y_t | x, y_<t)``, in nats; higher is less certain.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    return float(-_token_log_probs(token_log_probs).min())


def mean_token_entropy(entropies: Any) -> float:
    """Mean over tokens of the entropy of the next-token distribution, in nats; higher is less certain.

    Args:
        entropies: H(p(. | x, y_<t)) over the whole vocabulary, not a top-k part of it. Shape ``(T,)``.

    Raises:
        DataError: Empty or NaN.
    """
    return float(vector("token entropies", entropies).mean())


def max_token_entropy(entropies: Any) -> float:
    """Largest entropy of a next-token distribution, in nats; higher is less certain.

    Raises:
        DataError: Empty or NaN.
    """
    return float(vector("token entropies", entropies).max())


def monte_carlo_entropy(token_log_probs: Sequence[Any]) -> float:
    """``-(1/M) sum_m log p(y_m | x)`` over answers sampled from p without temperature or truncation.

    Args:
        token_log_probs: One list of token log-probabilities an answer.

    Returns:
        Nats; an unbiased estimate of the entropy of the answer string. Higher is less certain.

    Raises:
        DataError: No answer, or a bad one.
    """
    return float(vector("answers", [negative_log_likelihood(answer) for answer in token_log_probs]).mean())


def length_normalised_entropy(token_log_probs: Sequence[Any]) -> float:
    """``-(1/M) sum_m (1/T_m) log p(y_m | x)``: a score, not the entropy of anything. Higher is less certain.

    Raises:
        DataError: No answer, or a bad one.
    """
    return float(vector("answers", [token_nll(answer) for answer in token_log_probs]).mean())


def answer_mixture(draw_log_probs: Any) -> float:
    """``log p_EP(y) = log (1/S) sum_s p_s(y)``: the posterior predictive of a string, one draw for all its tokens.

    Args:
        draw_log_probs: log p_s(y | x) of the whole answer per draw, shape ``(S,)``; minus infinity is allowed.

    Returns:
        Nats <= 0, never below the mean of the log-probabilities. Higher is *more* certain.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    values = _token_log_probs(draw_log_probs)
    top = values.max()
    return float(top if np.isneginf(top) else top + np.log(np.exp(values - top).mean()))


def reverse_information(draw_log_probs: Any) -> float:
    """``(1/S) sum_s [log p_EP(y) - log p_s(y)]``, how much the draws disagree about one answer's probability.

    Args:
        draw_log_probs: As for :func:`answer_mixture`.

    Returns:
        Nats >= 0, zero when all draws agree; higher is less certain (epistemic). Infinite when one draw rules the
        answer out and another does not.

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    values = _token_log_probs(draw_log_probs)
    mixture = answer_mixture(values)
    return 0.0 if np.isneginf(mixture) else float(max(np.mean(mixture - values), 0.0))


def spread_of_draws(draw_log_probs: Any) -> float:
    """Standard deviation over draws of log p_s(y), with S - 1; NaN for one draw. Higher is less certain (epistemic).

    Raises:
        DataError: Empty, NaN, or values above zero.
    """
    values = _token_log_probs(draw_log_probs)
    if len(values) < 2:
        return float("nan")
    return float(values.std(ddof=1)) if np.isfinite(values).all() else float("inf")
