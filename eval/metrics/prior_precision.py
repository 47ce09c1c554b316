r"""The prior precision of a linearised posterior, fitted on held-out labels: one number, as a temperature is.

.. math:: z \sim N(f(m), \; J\,(N h + \alpha)^{-1} J^\top), \qquad
          \alpha^* = \arg\min_\alpha \; -\tfrac1n \sum_i \log E\,[\mathrm{softmax}(z_i)]_{y_i}

J is the Jacobian of the logits at the mean m (:mod:`vlora.eval.metrics.linearised`), N h what the data know of a
weight, alpha the prior precision in units of 1 / weight^2. Small alpha is a wide posterior; as it grows the predictive
becomes that of the mean, so an adapter whose uncertainty does not help its predictions gets a large one. The Jacobians
do not depend on alpha: a grid costs one pass over the rows. The same grid serves independent entries and Kronecker
factors, where alpha is added to the precision along every direction, and leading directions, where it is the precision
of what they leave out.

A grid and no refinement: the NLL is flat around its minimum, and its rungs, a factor of three apart, change a standard
deviation by 1.7 at most. Source of the predictive: Immer et al. 2021 (arXiv:2008.08400).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlora.errors import DataError
from vlora.eval.metrics.linearised import softmax_mean
from vlora.eval.metrics.proper_scores import negative_log_likelihood

__all__ = ["DEFAULT_PRIORS", "PriorFit", "fit_prior_precision", "linearised_nll"]

DEFAULT_PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Prior precisions tried: standard deviations of a weight that the data do not hold from 1 to .003."""


@dataclass(frozen=True)
class PriorFit:
    """The prior precision with the smallest held-out NLL among those that were tried."""

    precision: float
    """alpha*, the smallest of equal ones."""
    nll: float
    """NLL under it, nats per item; lower is better."""
    at_bound: bool
    """It is the first or the last of the grid: at the last one the mean predicts as well."""
    evaluated: tuple[tuple[float, float], ...]
    """Every (alpha, NLL) that was tried, by alpha."""


def linearised_nll(log_probs: Any, covariance: Any, label: Any) -> float:
    """Mean NLL of Gaussian logits pushed through the softmax, nats per item; lower is better.

    Args:
        log_probs: Logits at the mean up to a constant per item, ``(N, K)``; ``-inf`` for choices an item does not have.
        covariance: Covariance of the logits, ``(N, K, K)``.
        label: Index of the right choice, ``(N,)``.

    Raises:
        DataError: Shapes do not fit, or a covariance has a clearly negative eigenvalue.
    """
    return negative_log_likelihood(softmax_mean(log_probs, covariance), label).mean


def fit_prior_precision(
    nll: Callable[[float], float], precisions: Sequence[float] = DEFAULT_PRIORS
) -> PriorFit:
    """Prior precision with the smallest NLL on a grid.

    Args:
        nll: Held-out NLL under a prior precision; for scores at hand a dictionary's ``__getitem__``. Infinite values
            lose to finite ones.
        precisions: What to try: positive, rising, two or more.

    Raises:
        DataError: Not such a grid, or an NLL that is NaN, or infinite everywhere.
    """
    grid = [float(precision) for precision in precisions]
    if len(grid) < 2 or grid != sorted(set(grid)) or not 0 < grid[0] <= grid[-1] < math.inf:
        raise DataError(
            f"prior precisions must be two or more positive numbers in rising order, got {list(precisions)}"
        )
    tried = {precision: float(nll(precision)) for precision in grid}
    bad = next((precision for precision, value in tried.items() if math.isnan(value)), None)
    if bad is not None:
        raise DataError(f"the NLL under prior precision {bad:g} is NaN; the model may overflow there")
    best = min(grid, key=tried.__getitem__)
    if not math.isfinite(tried[best]):
        raise DataError(
            "the NLL is infinite under every prior: a right answer has probability 0; look at those rows"
        )
    return PriorFit(best, tried[best], best in (grid[0], grid[-1]), tuple(tried.items()))
