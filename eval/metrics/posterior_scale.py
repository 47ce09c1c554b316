"""The width of a posterior, fitted on held-out labels: one number c that multiplies every standard deviation.

    std -> c std,   ess -> ess / c^2,   c* = argmin_c NLL( mean over draws s of p(y | x, m + c std eps_s) )

Draws use the same noise eps_s at every c (common random numbers), so the NLL is a smooth function of c alone and not of
the luck of new draws. c = 0 would be the mean, c = 1 is the posterior as trained. arXiv:2506.14280 calls 1/c^2 the
test-time scale tau of lambda. Paper -> code: lambda -> ess, tau -> 1 / std_scale^2.

The NLL need not be convex in c, so a ladder of values is tried first and golden sections in log c refine the best rung.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlora.errors import DataError

__all__ = ["DEFAULT_LADDER", "ScaleFit", "fit_std_scale"]

DEFAULT_LADDER = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Scales tried first; a factor of 64 either way in ``ess``."""

_GOLDEN = (3 - math.sqrt(5)) / 2


@dataclass(frozen=True)
class ScaleFit:
    """The scale with the smallest held-out NLL among those that were tried."""

    std_scale: float
    """c*; below 1 the posterior was too wide for its draws to predict well."""
    nll: float
    """NLL at c*, nats, as evaluated there."""
    at_bound: bool
    """The best rung is the first or the last: at the first one the mean predicts best, at the last c may be larger."""
    evaluated: tuple[tuple[float, float], ...]
    """Every (c, NLL) that was tried, by c."""


def fit_std_scale(
    nll: Callable[[float], float], ladder: Sequence[float] = DEFAULT_LADDER, *, refine: int = 4
) -> ScaleFit:
    """Scale with the smallest NLL: every rung of a ladder, then golden sections around the best one.

    Args:
        nll: Held-out NLL at a scale, with the same noise every time. Infinite values lose to finite ones. For scores
            at known scales only, pass a dictionary's ``__getitem__`` and ``refine=0``.
        ladder: Positive scales, rising. 1 is added if it is not there, so that the fit can be compared with it.
        refine: Further evaluations; each of them shrinks the interval by up to .62 in log c.

    Returns:
        The best scale that was tried; never worse than the posterior as trained, on these rows.

    Raises:
        DataError: Fewer than two scales, not positive and rising, or an NLL that is NaN or infinite at all rungs.
    """
    rungs = sorted({*map(float, ladder), 1.0})
    if len(rungs) < 2 or list(ladder) != sorted(set(ladder)) or not 0 < rungs[0] <= rungs[-1] < math.inf:
        raise DataError(f"a ladder needs two or more positive scales in rising order, got {list(ladder)}")
    tried = {rung: _checked(nll, rung) for rung in rungs}
    best = min(tried, key=tried.__getitem__)
    if not math.isfinite(tried[best]):
        raise DataError(
            "the NLL is infinite at every scale: a right answer has probability 0; look at those rows"
        )
    at_bound = best in (rungs[0], rungs[-1])
    if not at_bound:
        place = rungs.index(best)
        low, high = rungs[place - 1], rungs[place + 1]
        for _ in range(refine):
            low, best, high = _shrink(nll, tried, low, best, high)
    best = min(tried, key=tried.__getitem__)
    return ScaleFit(best, tried[best], at_bound, tuple(sorted(tried.items())))


def _shrink(
    nll: Callable[[float], float], tried: dict[float, float], low: float, best: float, high: float
) -> tuple[float, float, float]:
    """One golden section: try a scale in the longer side of ``low < best < high``, keep the bracket of the best."""
    rising = high / best >= best / low
    end = high if rising else low
    new = best * (end / best) ** _GOLDEN
    tried[new] = _checked(nll, new)
    if tried[new] < tried[best]:
        return (best, new, high) if rising else (low, new, best)
    return (low, best, new) if rising else (new, best, high)


def _checked(nll: Callable[[float], float], scale: float) -> float:
    value = float(nll(scale))
    if math.isnan(value):
        raise DataError(
            f"the NLL at std_scale {scale:.4g} is NaN; the model may overflow there, try a lower ladder"
        )
    return value
