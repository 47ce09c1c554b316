"""A posterior for an adapter that is already trained: a diagonal Laplace approximation at its weights.

``PosteriorConfig`` describes a run, ``vlora.laplace.run.run_posterior`` does it; ``vlora.laplace.fit`` has the same
for a model in memory, ``vlora.laplace.evidence`` the formulas.
"""

from vlora.laplace.config import PosteriorConfig

__all__ = ["PosteriorConfig"]
