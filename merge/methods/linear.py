"""Linear merge: the weighted mean of the updates.

    DeltaW = sum_t w_t s_t B_t A_t / sum_t w_t

Weights are normalised to sum 1, so equal weights give the plain mean ("model soups", Wortsman et al. 2022,
arXiv:2203.05482, applied to updates). For a sum use ``task_arithmetic``.
"""

from collections.abc import Sequence

from vlora.errors import ConfigError
from vlora.merge.methods.task_arithmetic import weighted_sum
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["linear", "normalised"]


def linear(
    updates: Sequence[LoraUpdate], weights: Sequence[float], *, rank: str | float = "keep"
) -> MergedModule:
    """Weighted mean of the updates of one module.

    Args:
        updates: Updates of one module; an adapter without this module takes part with an empty update.
        weights: w_t, of any sign with a positive sum.
        rank: ``auto``, ``keep``, ``lossless``, a number, or a share of energy in (0, 1).

    Returns:
        The merged update; exact where the rank allows.

    Raises:
        ConfigError: The weights do not sum to a positive number.
    """
    return weighted_sum(updates, normalised(weights), rank)


def normalised(weights: Sequence[float], kind: str = "adapter") -> list[float]:
    """Weights divided by their sum.

    Args:
        weights: Of any sign.
        kind: What is merged, for messages: ``adapter`` or ``model``.

    Raises:
        ConfigError: The sum is not positive.
    """
    total = sum(weights)
    if not total > 0:
        cure = "on adapters without fully trained tensors" if kind == "adapter" else "with base_model"
        raise ConfigError(
            f"a mean divides by the sum of the weights, which is {total:g}; make it positive, or use "
            f"method: task_arithmetic {cure}"
        )
    return [w / total for w in weights]
