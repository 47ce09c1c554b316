"""The posterior of an adapter: the object, its folder on disk, its numbered draws and its sites."""

from vlora.posterior.hashing import fingerprint_weights
from vlora.posterior.meta import PosteriorMeta
from vlora.posterior.posterior import Posterior
from vlora.posterior.site import Site

__all__ = ["Posterior", "PosteriorMeta", "Site", "fingerprint_weights"]
