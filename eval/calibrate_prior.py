"""The part of ``vlora calibrate`` that fits the prior of the linearised predictive.

One forward and K backward passes give the Jacobians of all rows; every prior precision of every kind of covariance
takes its covariances from them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vlora.errors import ConfigError
from vlora.eval.calibrate_parts import Parts
from vlora.eval.linearised import Wanted
from vlora.eval.linearised_prior import prior_obstacle
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.linearised import softmax_mean
from vlora.eval.metrics.prior_precision import PriorFit, fit_prior_precision, linearised_nll
from vlora.eval.predictive import logit_covariances
from vlora.posterior import Posterior
from vlora.posterior.calibration import PRIOR_FORMAT
from vlora.posterior.decisions import LINEARISED, Kind
from vlora.posterior.kinds import available_kinds, missing, source_identity
from vlora.stacked import obstacle

__all__ = ["FittedPriors", "fit_priors"]

logger = logging.getLogger(__name__)
_NAMES: dict[Kind, str] = {kind: predictor for predictor, kind in LINEARISED.items()}


@dataclass(frozen=True)
class FittedPriors:
    """Fits by predictor (``vlora.posterior.decisions.LINEARISED``); empty where none could be made."""

    section: dict[str, Any] | None = None
    """What goes into ``calibration.json``, but for the rows."""
    log_probs: dict[str, Array] = field(default_factory=dict)
    """Of every predictor under its best prior on the rows of the fit, ``(N, K)``."""
    precision: dict[str, float] = field(default_factory=dict)
    """Best prior precision of every predictor."""


def fit_priors(
    parts: Parts,
    model: nn.Module,
    posterior: Posterior,
    at_mean: Array,
    name: str,
    tick: Callable[[int], object],
) -> FittedPriors:
    """Fit the prior precision of every kind of covariance that the posterior can have.

    Args:
        parts: The rows.
        model: The model that wears the adapter.
        posterior: The posterior at the width it was trained with.
        at_mean: Log-probabilities at the mean on the rows of the fit, ``(N, K)``.
        name: Name of the adapter, for messages.
        tick: Called with the number of rows done.

    Raises:
        ConfigError: ``calibration.predictor`` needs a prior that cannot be fitted.
    """
    rules = parts.fit.config.calibration
    reason = _reason(model, posterior)
    if reason is None and rules.predictor in LINEARISED:
        reason = missing(posterior, LINEARISED[rules.predictor])
    if reason is not None and rules.predictor in LINEARISED:
        raise ConfigError(f"calibration.predictor: {rules.predictor} cannot be had for {name}: {reason}")
    if not rules.prior_grid or reason is not None:
        if reason is not None:
            logger.info("%s: no prior is fitted for the linearised predictive: %s", name, reason)
        return FittedPriors()
    bayes, grid = posterior.at_temperature(1.0), rules.prior_grid
    kinds = available_kinds(posterior)
    found = logit_covariances(parts.fit.scorer, model, [Wanted([bayes], kind, grid) for kind in kinds], tick)
    label = [item.example.label for item in parts.fit.items]
    section: dict[str, Any] = {"format": PRIOR_FORMAT, "temperature": 1.0}
    log_probs, precision = {}, {}
    for number, kind in enumerate(kinds):
        name_of = _NAMES[kind]
        own = dict(zip(grid, found[number * len(grid) :], strict=False))
        fit = fit_prior_precision(lambda value, own=own: linearised_nll(at_mean, own[value], label), grid)
        _warn(fit, kind, name, grid)
        section[kind] = {**_entry(fit), **source_identity(posterior, kind)}
        log_probs[name_of], precision[name_of] = softmax_mean(at_mean, own[fit.precision]), fit.precision
    return FittedPriors(section, log_probs, precision)


def _reason(model: nn.Module, posterior: Posterior) -> str | None:
    """Why no prior can be fitted, or None."""
    if not posterior.has_hess:
        return "it has no posterior"
    missing = prior_obstacle(posterior)
    return f"the posterior {missing}" if missing is not None else obstacle(model, posterior)


def _entry(fit: PriorFit) -> dict[str, Any]:
    return {
        "prior_precision": fit.precision,
        "nll": fit.nll,
        "at_bound": fit.at_bound,
        "evaluated": [list(pair) for pair in fit.evaluated],
    }


def _warn(fit: PriorFit, kind: Kind, name: str, grid: Any) -> None:
    if fit.at_bound:
        logger.warning(
            "%s: the best prior precision of the %s predictive, %g, is the end of calibration.prior_grid; %s",
            *(name, "linearised" if kind == "independent" else f"linearised ({kind})", fit.precision),
            "the mean predicts as well"
            if fit.precision == grid[-1]
            else "a longer grid may find a better one",
        )
