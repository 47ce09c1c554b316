"""What a posterior says about whole strings, from what each of its draws says: for harnesses that score strings.

    log p(y | x) = log (1/S) sum_s prod_t p(y_t | x, y_<t, theta_s)

One theta_s for the whole string (expectation of products; Malinin & Gales 2021, arXiv:2002.07650): averaging next-token
distributions instead would mix draws inside a string, which is another, per-token model.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlora.errors import DataError

__all__ = ["log_mean_exp", "most_given", "posterior_predictive"]


def log_mean_exp(log_probs: Sequence[float]) -> float:
    """Log (1/S) sum_s exp(l_s), without underflow.

    Args:
        log_probs: Log-probability of one string under each of S draws; minus infinity is allowed.

    Returns:
        At least the mean of the values; exactly the value when all are equal.

    Raises:
        DataError: No draw, NaN, or a log-probability above zero.
    """
    values = np.asarray(log_probs, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any():
        raise DataError(f"expected log-probabilities of at least one draw, got {values.tolist()}")
    if values.max() > 1e-3:
        raise DataError(f"log-probabilities must be <= 0, got {values.max():.3g}")
    top = float(values.max())
    return top if math.isinf(top) else top + math.log(float(np.exp(values - top).mean()))


def posterior_predictive(draws: Sequence[Sequence[tuple[float, bool]]]) -> list[tuple[float, bool]]:
    """Combine what every draw says about N strings.

    Args:
        draws: Per draw, (log-probability, whether the string is the draw's greedy one) of every string.

    Returns:
        Per string, the log of the mean probability, and whether it is greedy under more than half of the draws.

    Raises:
        DataError: No draw, draws of different length, or NaN.
    """
    if not draws or len({len(draw) for draw in draws}) > 1:
        raise DataError(f"expected the same strings under every draw, got {[len(draw) for draw in draws]}")
    return [
        (log_mean_exp([value for value, _ in said]), 2 * sum(greedy for _, greedy in said) > len(said))
        for said in zip(*draws, strict=True)
    ]


def most_given(answers: Sequence[str], at_mean: str) -> str:
    """The answer that most draws give: an estimate of the posterior predictive's most probable string.

    Answers count as one where they are equal up to outer white space. Between equally frequent ones the mean's own is
    taken if it is among them, else the first; where all draws differ, the mean's.

    Args:
        answers: What every draw says, at least one.
        at_mean: What the posterior mean says.

    Raises:
        DataError: No draw.
    """
    if not answers:
        raise DataError("expected the answers of at least one draw, got none")
    counts = Counter(answer.strip() for answer in answers)
    most = max(counts.values())
    if counts[at_mean.strip()] == most or (most == 1 and len(answers) > 1):
        return at_mean
    return next(answer for answer in answers if counts[answer.strip()] == most)
