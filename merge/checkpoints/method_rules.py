"""From the name of a method to the rule of one tensor."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlora.errors import ConfigError
from vlora.merge.checkpoints.average_rules import Fisher, Slerp
from vlora.merge.checkpoints.case import Case
from vlora.merge.checkpoints.gram_files import NEEDS_GRAMS
from vlora.merge.checkpoints.gram_rules import GradientMatching, Mats, RegMean
from vlora.merge.checkpoints.masks import MaskSource
from vlora.merge.checkpoints.matrix_rules import IsoC, Tsv
from vlora.merge.checkpoints.rules import Rule, WeightedMean, WeightedSum
from vlora.merge.checkpoints.sparse_rules import Dare, Della, Ties
from vlora.merge.checkpoints.transposed_rules import OnTransposed
from vlora.merge.methods.linear import normalised

if TYPE_CHECKING:
    from vlora.merge.checkpoints.stream import TensorJob

__all__ = ["method_notes", "rule_for"]


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
        return Ties(weights, order=case.order, **options)
    if method in ("tsv", "iso_c"):
        return _spectral(method, case, options)
    if method in NEEDS_GRAMS:
        return _curved(method, case, options)
    if method == "fisher":
        _positive(case, "a Fisher average takes positive weights")
        return Fisher(weights, **options)
    masks = [MaskSource(options.get("seed", 0), content, case.tensor) for content in case.contents]
    rest = {key: value for key, value in options.items() if key != "seed"}
    if method == "della":
        return Della(weights, masks, elects=True, columns=case.columns, order=case.order, **rest)
    return Dare(weights, masks, elects=method == "dare_ties", order=case.order, **rest)


def method_notes(method: str, jobs: Sequence["TensorJob"]) -> list[str]:
    """What became of the tensors that the method proper does not cover, in one sentence."""
    kept = _COVERED.get(method)
    others = [job.name for job in jobs if job.case is not None and kept and not kept.covers(job.case)]
    if kept is None or not others:
        return []
    return [f"{len(others)} of {len(jobs)} tensors {kept.reason}, first {others[0]}: they get {kept.instead}"]


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


def _curved(method: str, case: Case, options: Mapping[str, Any]) -> Rule:
    """A rule with Grams; where there are none, the method with no curvature at all: the plain mean or sum."""
    if method != "gradient_matching":
        name = {"regmean": "RegMean", "mats": "MaTS"}[method]
        _positive(case, f"{name} takes positive weights", "; to subtract a model use method: task_arithmetic")
    known = {key: value for key, value in options.items() if key != "curvature"}
    if case.grams:
        if method == "mats":
            return Mats(case.weights, grams=case.grams, order=case.order, **known)
        by_rows = RegMean if method == "regmean" else GradientMatching
        rule = by_rows(case.weights, grams=case.grams, **known)
        return OnTransposed(rule) if case.grams[0].transposed else rule
    if method == "regmean":
        return WeightedMean(normalised(case.weights, "model"))
    return WeightedSum([options.get("scale", 1.0) * w for w in case.weights])


@dataclass(frozen=True)
class _Covered:
    """Which tensors a method proper is for, and what the others get."""

    covers: Callable[[Case], bool]
    reason: str
    instead: str


def _has_grams(case: Case) -> bool:
    return bool(case.grams)


_MATRICES = _Covered(
    lambda case: case.matrix,
    "are no weight matrices (vectors, embeddings, output layers)",
    "the mean of the models' differences, as in the paper's program",
)
_SUMMED = _Covered(_has_grams, "have no curvature", "the weighted sum of the models' differences")
_COVERED = {
    "tsv": _MATRICES,
    "iso_c": _MATRICES,
    "regmean": _Covered(_has_grams, "have no Gram", "the weighted mean of the models"),
    "gradient_matching": _SUMMED,
    "mats": _SUMMED,
}


def _positive(case: Case, what: str, cure: str = "") -> None:
    if min(case.weights) < 0:
        raise ConfigError(f"{what}, got {min(case.weights):g} on {case.tensor}{cure}")
