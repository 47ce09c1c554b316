r"""The share of a prior variance that the data left of an output, for one posterior.

The formula is :meth:`vlora.posterior.leading.Leading.share_left`, with the directions of the posterior and the
precision of :meth:`vlora.posterior.leading.Leading.row_precision`: nothing is fitted, and neither the prior nor the
temperature of the posterior plays a part.
"""

from vlora.errors import ConfigError
from vlora.posterior.kinds import missing, source_identity
from vlora.posterior.posterior import Posterior

__all__ = ["share_name", "share_obstacle", "share_precision"]


def share_obstacle(posterior: Posterior) -> str | None:
    """Why the share cannot be had of a posterior, or None."""
    if (reason := missing(posterior, "leading")) is not None:
        return reason
    if posterior.meta.num_examples < 1:
        return "it records no num_examples, so what an average example tells is unknown"
    return None


def share_precision(posterior: Posterior) -> float:
    """Prior precision that the share is of, in 1 / weight^2; of a posterior as read from its folder.

    Raises:
        ConfigError: There are no leading directions, or the number of examples is not known.
    """
    if (reason := share_obstacle(posterior)) is not None:
        raise ConfigError(f"share_left cannot be had: {reason}")
    assert posterior.directions is not None
    return posterior.directions.row_precision(posterior.meta.num_examples)


def share_name(posterior: Posterior) -> str:
    """Name under which the shares of a posterior as read are stored."""
    precision = share_precision(posterior)
    (sha256,) = source_identity(posterior, "leading").values()
    return f"linearised_share_{sha256[:16]}_{precision!r}"
