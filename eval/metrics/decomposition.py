"""What a Brier score is made of: miscalibration, discrimination, and what no forecast could know.

    mean (p_i - y_i)^2  =  reliability - resolution + uncertainty,        uncertainty = ybar (1 - ybar)

p is a probability of an event and y whether it came true, both ``(N,)``: confidence and correctness, or one class
against the rest (the sum over classes decomposes the multi-class score). Two ways to find what the forecasts *should*
have been:

* ``isotonic_decomposition``: the non-decreasing fit of y on p (pool adjacent violators), without bins or constants.
  Reliability is then called MCB and resolution DSC (CORP; Dimitriadis, Gneiting & Jordan 2021,
  doi:10.1073/pnas.2016191118).
* ``binned_decomposition``: the mean of y in each bin (Murphy 1973), plus the terms of the spread inside bins, without
  which the three do not add up (Stephenson, Coelho & Jolliffe 2008, doi:10.1175/2007WAF2006116.1).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, same_length, unit_interval
from vlora.eval.metrics.calibration import Scheme, bin_index
from vlora.eval.metrics.ranking import Ranking

__all__ = ["BrierParts", "binned_decomposition", "isotonic_decomposition", "isotonic_fit"]


@dataclass(frozen=True)
class BrierParts:
    """Brier score of probabilities of one event, ``score = reliability - resolution + uncertainty``."""

    score: float
    """Mean (p - y)^2, in [0, 1]; lower is better."""
    reliability: float
    """What recalibrating would save (MCB), >= 0; lower is better."""
    resolution: float
    """What the recalibrated forecasts save against always saying the base rate (DSC); higher is better."""
    uncertainty: float
    """Score of the base rate, ybar (1 - ybar) for y in {0, 1}: a property of the data."""


def isotonic_fit(probability: Any, outcome: Any) -> Array:
    """Best non-decreasing function of the probability, in squared error, by pooling adjacent violators.

    Args:
        probability: Forecasts in [0, 1], shape ``(N,)``.
        outcome: Whether it came true, in [0, 1], shape ``(N,)``.

    Returns:
        The recalibrated forecasts, shape ``(N,)``; equal forecasts stay equal.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    probability, outcome = _inputs(probability, outcome)
    ranking, ones = Ranking.of(probability), np.ones((1, len(outcome)))
    count, total = ranking.collapse(ones)[0], ranking.collapse(ones, outcome)[0]
    pooled: list[tuple[float, float, int]] = []  # sum of outcomes, items and tie groups of a block
    for hits, items in zip(total.tolist(), count.tolist(), strict=True):
        groups = 1
        while pooled and pooled[-1][0] * items >= hits * pooled[-1][1]:
            before = pooled.pop()
            hits, items, groups = hits + before[0], items + before[1], groups + before[2]
        pooled.append((hits, items, groups))
    level = np.repeat([hits / items for hits, items, _ in pooled], [groups for _, _, groups in pooled])
    return level[ranking.group_of_item()]


def isotonic_decomposition(probability: Any, outcome: Any) -> BrierParts:
    """Brier score by the isotonic fit: reliability and resolution are never negative.

    Args:
        probability: Forecasts in [0, 1], shape ``(N,)``.
        outcome: Whether it came true, in [0, 1], shape ``(N,)``.

    Returns:
        The parts.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    probability, outcome = _inputs(probability, outcome)
    score = float(np.square(probability - outcome).mean())
    fitted = float(np.square(isotonic_fit(probability, outcome) - outcome).mean())
    base = float(np.square(outcome - outcome.mean()).mean())
    return BrierParts(score, max(score - fitted, 0.0), max(base - fitted, 0.0), base)


def binned_decomposition(
    probability: Any, outcome: Any, num_bins: int = 15, scheme: Scheme = "equal_width"
) -> BrierParts:
    """Brier score by bins; the spread inside bins goes to the resolution, so the parts add up exactly.

    reliability = sum_b w_b (pbar_b - ybar_b)^2, and resolution = sum_b w_b [(ybar_b - ybar)^2 + 2 cov_b - var_b],
    with the covariance of p and y and the variance of p inside bins. It depends on the bins;
    ``isotonic_decomposition`` does not.

    Args:
        probability: Forecasts in [0, 1], shape ``(N,)``.
        outcome: Whether it came true, in [0, 1], shape ``(N,)``.
        num_bins: Number of bins.
        scheme: ``equal_width`` or ``equal_mass``, see ``calibration``.

    Returns:
        The parts.

    Raises:
        DataError: Lengths differ, empty, NaN, or values outside [0, 1].
    """
    probability, outcome = _inputs(probability, outcome)
    index = bin_index(probability, num_bins, scheme)
    count = np.maximum(np.bincount(index, minlength=num_bins), 1)
    p_mean = (np.bincount(index, probability, num_bins) / count)[index]
    y_mean = (np.bincount(index, outcome, num_bins) / count)[index]
    spread = 2 * (probability - p_mean) * (outcome - y_mean) - np.square(probability - p_mean)
    return BrierParts(
        score=float(np.square(probability - outcome).mean()),
        reliability=float(np.square(p_mean - y_mean).mean()),
        resolution=float((np.square(y_mean - outcome.mean()) + spread).mean()),
        uncertainty=float(np.square(outcome - outcome.mean()).mean()),
    )


def _inputs(probability: Any, outcome: Any) -> tuple[Array, Array]:
    probability, outcome = unit_interval("probability", probability), unit_interval("outcome", outcome)
    same_length(probability=probability, outcome=outcome)
    return probability, outcome
