"""From the name of a method to the rule of one tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlora.errors import ConfigError
from vlora.merge.checkpoints.average_rules import Fisher, Slerp
from vlora.merge.checkpoints.masks import MaskSource
from vlora.merge.checkpoints.matrix_rules import IsoC, Tsv
from vlora.merge.checkpoints.rules import Rule, WeightedMean, WeightedSum
from vlora.merge.checkpoints.sparse_rules import Dare, Della, Ties
from vlora.merge.linear import normalised

if TYPE_CHECKING:
    from vlora.merge.checkpoints.stream import TensorJob

__all__ = ["Case", "method_notes", "rule_for"]


@dataclass(frozen=True)
class Case:
    """One tensor of a merge: what its rule depends on besides method and options."""

    tensor: str
    """Its name, for masks and messages."""
    shape: tuple[int, ...]
    weights: Sequence[float]
    """Of the models that take part, none of them 0."""
    names: Sequence[str]
    """Their names, for masks and messages."""
    from_base: bool
    """Whether the first input is the base."""
    matrix: bool = False
    """Whether it is a weight matrix and no table of embeddings: what methods on singular values take whole."""

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1] if self.shape else 1

    def only(self, index: int) -> "Case":
        """One of the models alone, with weight 1."""
        return replace(self, weights=[1.0], names=[self.names[index]])


def rule_for(method: str, case: Case, options: Mapping[str, Any]) -> Rule:
    """The rule of one tensor.

    Args:
        method: One of :data:`vlora.merge.checkpoints.config.MODEL_METHODS`.
        case: The tensor and the models.
        options: Options of the method that were given.

    Raises:
        ConfigError: The weights do not suit the method.
    """
    weights = case.weights
    if method == "linear":
        return WeightedMean(normalised(weights, "model"))
    if method == "task_arithmetic":
        return WeightedSum([options.get("scale", 1.0) * w for w in weights])
    if method == "slerp":
        return _slerp(case)
    if method == "ties":
        return Ties(weights, **options)
    if method in ("tsv", "iso_c"):
        return _spectral(method, case, options)
    if method == "fisher":
        _positive(case, "a Fisher average takes positive weights")
        return Fisher(weights, **options)
    masks = [MaskSource(options.get("seed", 0), name, case.tensor) for name in case.names]
    rest = {key: value for key, value in options.items() if key != "seed"}
    if method == "della":
        return Della(weights, masks, elects=True, columns=case.columns, **rest)
    return Dare(weights, masks, elects=method == "dare_ties", **rest)


def method_notes(method: str, jobs: Sequence["TensorJob"]) -> list[str]:
    """What became of the tensors that the method proper does not cover, in one sentence."""
    if method not in ("tsv", "iso_c"):
        return []
    others = [job.name for job in jobs if job.case is not None and not job.case.matrix]
    if not others:
        return []
    return [
        f"{len(others)} of {len(jobs)} tensors are no weight matrices (vectors, embeddings, output layers), first "
        f"{others[0]}: they get the mean of the models' differences, as in the paper's program"
    ]


def _slerp(case: Case) -> Rule:
    _positive(case, "slerp takes positive weights", "; to subtract a model use method: task_arithmetic")
    if len(case.weights) == 1:  # the other model is left out here
        return WeightedSum([1.0]) if case.from_base else WeightedMean([1.0])
    return Slerp(case.weights, case.from_base)


def _spectral(method: str, case: Case, options: Mapping[str, Any]) -> Rule:
    """A rule for whole matrices; where there are no singular values, the mean of the differences as in the papers."""
    if case.matrix:
        return (Tsv if method == "tsv" else IsoC)(case.weights, **options)
    share = options.get("scale", 1.0) / len(case.weights)
    return WeightedSum([share * w for w in case.weights])


def _positive(case: Case, what: str, cure: str = "") -> None:
    if min(case.weights) < 0:
        raise ConfigError(f"{what}, got {min(case.weights):g} on {case.tensor}{cure}")
