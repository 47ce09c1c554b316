"""From the name of a method to the rule of one tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.checkpoints.average_rules import Fisher, Slerp
from vlora.merge.checkpoints.masks import MaskSource
from vlora.merge.checkpoints.rules import Rule, WeightedMean, WeightedSum
from vlora.merge.checkpoints.sparse_rules import Dare, Della, Ties
from vlora.merge.linear import normalised

__all__ = ["rule_for"]


def rule_for(
    method: str,
    weights: Sequence[float],
    names: Sequence[str],
    tensor: str,
    columns: int,
    options: Mapping[str, Any],
    from_base: bool,
) -> Rule:
    """The rule of one tensor.

    Args:
        method: One of :data:`vlora.merge.checkpoints.config.MODEL_METHODS`.
        weights: Of the models that take part, none of them 0.
        names: Their names, for masks.
        tensor: Its name, for masks.
        columns: Length of a row.
        options: Options of the method that were given.
        from_base: Whether the first input is the base.

    Raises:
        ConfigError: The weights do not suit the method.
    """
    if method == "linear":
        return WeightedMean(normalised(weights, "model"))
    if method == "task_arithmetic":
        return WeightedSum([options.get("scale", 1.0) * w for w in weights])
    if method == "slerp":
        return _slerp(weights, tensor, from_base)
    if method == "ties":
        return Ties(weights, **options)
    if method == "fisher":
        if min(weights) < 0:
            raise ConfigError(f"a Fisher average takes positive weights, got {min(weights):g} on {tensor}")
        return Fisher(weights, **options)
    masks = [MaskSource(options.get("seed", 0), name, tensor) for name in names]
    rest = {key: value for key, value in options.items() if key != "seed"}
    if method == "della":
        return Della(weights, masks, elects=True, columns=columns, **rest)
    return Dare(weights, masks, elects=method == "dare_ties", **rest)


def _slerp(weights: Sequence[float], tensor: str, from_base: bool) -> Rule:
    if min(weights) < 0:
        raise ConfigError(
            f"slerp takes positive weights, got {min(weights):g} on {tensor}; to subtract a model use method: "
            "task_arithmetic"
        )
    if len(weights) == 1:  # the other model is left out here
        return WeightedSum([1.0]) if from_base else WeightedMean([1.0])
    return Slerp(weights, from_base)
