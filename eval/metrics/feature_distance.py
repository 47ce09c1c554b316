r"""Distance of a hidden state from training states: a score for inputs unlike anything in training.

    class-wise      M(x) = min_c (z - mu_c)' S^-1 (z - mu_c)             Lee et al. 2018, arXiv:1807.03888, eq. 2
    background      M_0(x) = (z - mu_0)' S_0^-1 (z - mu_0)                one Gaussian for all training states
    relative        M(x) - M_0(x)                                         Ren et al. 2021, arXiv:2106.09022, eq. 3

S is the covariance around the class means, shared by the classes, S_0 that around the common mean. Both are shrunk
towards a multiple of the identity, S* = (1 - a) S + a (tr S / d) I, with the a in [0, 1] that Ledoit and Wolf 2004
(doi:10.1016/S0047-259X(03)00096-4) estimate from the states, so that they have an inverse when there are fewer states
than dimensions. Deviations: the last layer alone and no input noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, numbers

__all__ = ["FeatureGaussian", "shrunk_covariance"]


def shrunk_covariance(centred: Any) -> tuple[Array, float]:
    """Ledoit and Wolf's covariance of states that are centred already.

    Args:
        centred: States minus their mean. Shape ``(N, d)``.

    Returns:
        The covariance ``(d, d)`` and its shrinkage a: 0 is the sample covariance, 1 a multiple of the identity.

    Raises:
        DataError: Not a matrix, empty, NaN or infinite.
    """
    values = _matrix("centred", centred)
    count, size = values.shape
    sample = values.T @ values / count
    mean = float(np.trace(sample)) / size
    spread = float(np.square(sample).sum()) / size - mean**2  # |S - mean I|^2 / d
    fourth = float(np.square(np.square(values).sum(axis=1)).sum()) / count
    noise = (fourth - float(np.square(sample).sum())) / (count * size)  # expected |S - Sigma|^2 / d
    shrinkage = 0.0 if spread <= 0 else min(max(noise / spread, 0.0), 1.0)
    return (1 - shrinkage) * sample + shrinkage * mean * np.eye(size), shrinkage


@dataclass(frozen=True)
class FeatureGaussian:
    """Gaussians of training states, one mean a class."""

    means: Array
    """Mean of every class, ``(C, d)``."""
    root: Array
    """Lower Cholesky factor of the covariance within classes, ``(d, d)``."""
    center: Array
    """Mean of all states, ``(d,)``."""
    background: Array
    """Lower Cholesky factor of the covariance of all states, ``(d, d)``."""
    shrinkage: float
    """Shrinkage of the covariance within classes."""

    @classmethod
    def fit(cls, states: Any, label: Any = None) -> "FeatureGaussian":
        """Fit the Gaussians.

        Args:
            states: Hidden states of training rows. Shape ``(N, d)``.
            label: Class of every row, ``(N,)``; None makes one class of all.

        Raises:
            DataError: Bad shapes, NaN, fewer than two states, or states that are all equal.
        """
        states = _matrix("states", states)
        names = np.zeros(len(states), dtype=np.int64) if label is None else np.asarray(label)
        if names.shape != (len(states),) or len(states) < 2:
            raise DataError(
                f"expected two or more states with a class each, got {len(states)} states and classes of shape "
                f"{names.shape}"
            )
        _, place = np.unique(names, return_inverse=True)
        means = np.stack([states[place == number].mean(axis=0) for number in range(place.max() + 1)])
        center = states.mean(axis=0)
        within, shrinkage = shrunk_covariance(states - means[place])
        return cls(means, _root(within), center, _root(shrunk_covariance(states - center)[0]), shrinkage)

    def distance(self, states: Any) -> Array:
        """Squared distance to the nearest class mean; higher is less like the training states. Shape ``(N,)``.

        Raises:
            DataError: Not a matrix of this width, NaN or infinite.
        """
        states = self._checked(states)
        return np.stack([_squares(self.root, states - mean) for mean in self.means]).min(axis=0)

    def relative(self, states: Any) -> Array:
        """The same minus the squared distance under the background Gaussian, ``(N,)``; zero with one class.

        What all training states share, however far it lies from an input, cancels: made for near inputs.

        Raises:
            DataError: As :meth:`distance`.
        """
        states = self._checked(states)
        return self.distance(states) - _squares(self.background, states - self.center)

    def _checked(self, states: Any) -> Array:
        states = _matrix("states", states)
        if states.shape[1] != len(self.center):
            raise DataError(f"expected states of width {len(self.center)}, got {states.shape[1]}")
        return states


def _root(covariance: Array) -> Array:
    try:
        return np.linalg.cholesky(covariance).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        raise DataError(
            "the states do not vary around their class means, so no distance can be measured; give more training rows"
        ) from None


def _squares(root: Array, away: Array) -> Array:
    """Squared norm of ``root^-1 away`` per row."""
    white = np.linalg.solve(root, away.T).astype(np.float64, copy=False)
    return np.square(white).sum(axis=0)


def _matrix(name: str, values: Any) -> Array:
    array = numbers(name, values)
    if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise DataError(f"{name} must be finite numbers of shape (N, d), got shape {array.shape}")
    return array
