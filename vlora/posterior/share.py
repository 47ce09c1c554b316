r"""The share of the prior variance that the data left of an output, for one posterior: which prior, and what it takes.

The formula is :meth:`vlora.posterior.leading.Leading.share_left`. Its F is that of ``directions.safetensors`` as the
folder has it, and its prior precision that of the posterior itself, :math:`\alpha = \mathrm{ess} \cdot \delta`, so that
nothing is fitted. Another temperature or prior changes both numbers: take the posterior as it was read.
"""

import math

from vlora.errors import ConfigError
from vlora.posterior.kinds import missing, source_identity
from vlora.posterior.posterior import Posterior

__all__ = ["share_name", "share_obstacle", "share_precision"]


def share_obstacle(posterior: Posterior) -> str | None:
    """Why the share cannot be had of a posterior, or None."""
    if (reason := missing(posterior, "leading")) is not None:
        return reason
    found = _precisions(posterior)
    if len(found) > 1:
        return (
            f"its prior precision differs between tensors ({min(found):g} to {max(found):g}); fit it with "
            "prior_scope: all or a number as prior_precision"
        )
    alpha = next(iter(found), 0.0)
    if not 0 < alpha < math.inf:
        return f"its prior precision (ess times weight_decay) is {alpha:g}, expected a positive number"
    return None


def share_precision(posterior: Posterior) -> float:
    r"""Prior precision :math:`\alpha` of a posterior as read from its folder, in 1 / weight^2.

    Raises:
        ConfigError: There are no leading directions, or no prior precision that all tensors have.
    """
    if (reason := share_obstacle(posterior)) is not None:
        raise ConfigError(f"share_left cannot be had: {reason}")
    return _precisions(posterior).pop()


def share_name(posterior: Posterior) -> str:
    """Name under which the shares of a posterior are stored."""
    precision = share_precision(posterior)
    (sha256,) = source_identity(posterior, "leading").values()
    return f"linearised_share_{sha256[:16]}_{precision!r}"


def _precisions(posterior: Posterior) -> set[float]:
    """Prior precisions of the stochastic tensors, to seven digits."""
    meta = posterior.meta
    return {float(f"{meta.of('ess', key) * meta.of('weight_decay', key):.7g}") for key in posterior.hess}
