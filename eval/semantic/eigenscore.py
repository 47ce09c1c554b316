r"""EigenScore: the volume that the sampled answers span in a model's hidden space.

    (1/M) log det(E J E^T + alpha I),      J = I - 1/d 11^T

Source: Chen et al. 2024 (INSIDE), arXiv:2402.03744, eq. 5 to 8. E holds one sentence embedding a row: the middle
layer's state at the answer's last token. As published, J centres over the d features of each embedding, not over the M
answers; ``centre="answers"`` gives the covariance of the answers instead. The magnitude depends on the model's width
and norms, so the score ranks answers of one model and nothing else.
"""

from typing import Any, Literal

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import numbers

__all__ = ["eigenscore"]

ALPHA = 1e-3


def eigenscore(
    embeddings: Any, *, alpha: float = ALPHA, centre: Literal["features", "answers"] = "features"
) -> float:
    """Mean log eigenvalue of the Gram matrix of centred answer embeddings.

    Args:
        embeddings: One embedding per answer, shape ``(M, d)``.
        alpha: Regularisation added to every eigenvalue, > 0.
        centre: Axis whose mean is taken out; ``features`` as published.

    Returns:
        The score, >= log alpha; higher is less certain.

    Raises:
        DataError: Wrong shape, fewer than two answers, not finite, or ``alpha`` not positive.
    """
    array = numbers("embeddings", embeddings)
    if array.ndim != 2 or len(array) < 2 or array.shape[1] < 1:
        raise DataError(f"embeddings must have shape (M, d) with at least two answers, got {array.shape}")
    if not np.isfinite(array).all() or not alpha > 0:
        raise DataError("embeddings must be finite and alpha > 0")
    centred = array - array.mean(axis=1 if centre == "features" else 0, keepdims=True)
    values = np.linalg.eigvalsh(centred @ centred.T)
    return float(np.log(np.maximum(values, 0.0) + alpha).mean())
