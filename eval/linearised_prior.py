"""Which posterior the linearised predictive takes: the one of the draws, or one under a prior fitted for it.

A linearised predictive has no second-order cost of noise, so it bears a posterior as wide as Bayes' rule has it
(temperature 1), if the prior is right: its precision is what ``vlora calibrate`` fits
(:mod:`vlora.eval.metrics.prior_precision`) and ``linearised_prior`` chooses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlora.errors import ConfigError
from vlora.posterior import Posterior
from vlora.posterior.calibration import fitted_prior, under_prior
from vlora.posterior.decisions import Kind

__all__ = ["LinearisedPrior", "linearised_prior", "prior_obstacle"]


@dataclass(frozen=True)
class LinearisedPrior:
    """A prior precision that was chosen for the linearised predictive of one adapter."""

    posterior: Posterior
    """The posterior at temperature 1 under it."""
    precision: float
    """Prior precision, in 1 / weight^2."""
    fitted: Mapping[str, Any] | None = None
    """What is known of its fit; None for a number of the user's."""
    kind: Kind = "independent"
    """Covariance of the weights that it is for."""

    def describe(self) -> str:
        """One line for people."""
        rows = ((self.fitted or {}).get("split") or {}).get("rows", "?")
        source = "as configured" if self.fitted is None else f"fitted on {rows} held-out rows"
        if self.kind == "leading":
            return f"precision {self.precision:g} of what the leading directions leave out, {source}"
        return f"prior precision {self.precision:g} at temperature 1, {source}"


def linearised_prior(
    posterior: Posterior,
    path: str,
    choice: float | Literal["auto", "stored"] | None,
    *,
    kind: Kind,
) -> LinearisedPrior | None:
    """The prior that ``linearised_prior`` asks for; None takes the posterior of the draws.

    Args:
        posterior: As read from its folder.
        path: The folder, for messages.
        choice: A precision, ``auto`` (as fitted, where it was), ``stored`` (as fitted), or None.
        kind: Covariance of the weights; each has a fit of its own.

    Raises:
        ConfigError: ``stored`` without a fit, or a number for a posterior that does not know its number of examples.
        PosteriorFormatError: The fit is damaged, newer, or belongs to another posterior.
    """
    if choice is None:
        return None
    if not isinstance(choice, str):
        if (reason := prior_obstacle(posterior)) is not None:
            raise ConfigError(f"linearised_prior is set but {path} {reason}; leave it out")
        return LinearisedPrior(under_prior(posterior, choice), float(choice), kind=kind)
    fitted = fitted_prior(posterior, kind)
    if fitted is not None:
        precision = float(fitted["prior_precision"])
        return LinearisedPrior(under_prior(posterior, precision), precision, fitted, kind)
    if choice == "stored":
        source = {"kronecker": " with Kronecker factors", "leading": " with leading directions"}.get(kind, "")
        raise ConfigError(
            f"linearised_prior is 'stored' but {path} holds no prior fitted{source} in its calibration.json; run vlora "
            "calibrate first, or set linearised_prior: auto"
        )
    return None


def prior_obstacle(posterior: Posterior) -> str | None:
    """Why a prior cannot be set on a posterior, or None."""
    if posterior.meta.num_examples < 1:
        return "records no num_examples, so what its data know (N h) is unknown"
    return None
