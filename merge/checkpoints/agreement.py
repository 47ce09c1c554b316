"""How far the inputs of a merge agree, per tensor and per kind of tensor, on a sample of every tensor.

With a base, the differences u_t = W_t - W_0 are compared; without one the models themselves, whose cosines are then
close to 1. Per tensor, means over pairs of models (or over models), on up to 16 evenly spaced pieces of 1024 entries:

    cosine     <u_s, u_t> / |u_s| |u_t|          1 agree, 0 unrelated, -1 opposite
    opposite   share of entries of opposite sign, among those where neither is 0
    distance   |u_t| / |W_0|, or without a base |W_s - W_t| / sqrt(|W_s| |W_t|)

and for Fisher averages ``clamped``, the share of Fisher entries that were lifted to the floor.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vlora.merge.checkpoints.average_rules import FLOOR, Fisher, Slerp
from vlora.merge.checkpoints.gram_rules import GradientMatching, GramRows
from vlora.merge.checkpoints.matrix_rules import WholeMatrix
from vlora.merge.checkpoints.rules import Rule, WeightedMean, WeightedSum
from vlora.merge.checkpoints.sparse_rules import Dare, Ties
from vlora.merge.checkpoints.stream import TensorStream
from vlora.merge.checkpoints.transposed_rules import OnTransposed

__all__ = ["MEASURES", "by_kind", "sampled_agreement"]

MEASURES = ("cosine", "opposite", "distance", "clamped")
"""Keys of the result."""
_PIECES, _LENGTH = 16, 1024
_LAYER = re.compile(r"^(?:.*?\.)?\d+\.")


def sampled_agreement(rule: Rule, stream: TensorStream) -> dict[str, float]:
    """Measures of one tensor; none where fewer than two models take part or one is zero, as for a frozen tensor.

    Args:
        rule: How the tensor is made.
        stream: Its inputs.
    """
    rule = rule.rule if isinstance(rule, OnTransposed) else rule  # measures go entry by entry
    if stream.job.row_maps is not None or not isinstance(
        rule, (WeightedMean, WeightedSum, Slerp, Fisher, Ties, Dare, WholeMatrix, GramRows)
    ):
        return {}
    values = [value.double() for value in stream.sample(_PIECES, _LENGTH)]
    if isinstance(rule, (WeightedSum, Ties, Dare, WholeMatrix, GradientMatching)) or (
        isinstance(rule, Slerp) and rule.from_base
    ):
        base, *models = values
        updates = [model - base for model in models]
    else:
        base, updates = None, values[: len(rule.weights)] if isinstance(rule, Fisher) else values
    norms = [update.norm().item() for update in updates]
    found = {}
    if len(updates) > 1 and all(norms):
        found = _pairs(updates, norms, base)
    if isinstance(rule, Fisher):
        shares = [(f < FLOOR * f.mean()).double().mean().item() for f in values[len(updates) :]]
        found["clamped"] = fmean(shares)
    return {name: round(value, 6) for name, value in found.items()}


def by_kind(findings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Kind of tensor (its name after the number of the layer) -> number of tensors and mean of every measure.

    Args:
        findings: Tensor -> what was found.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, found in findings.items():
        if any(measure in found for measure in MEASURES):
            kinds.setdefault(_LAYER.sub("", name), []).append(found)
    result = {}
    for kind in sorted(kinds):
        rows = kinds[kind]
        means = {
            m: round(fmean(r[m] for r in rows if m in r), 6) for m in MEASURES if any(m in r for r in rows)
        }
        result[kind] = {"tensors": len(rows), **means}
    return result


def _pairs(updates: Sequence[Tensor], norms: Sequence[float], base: Tensor | None) -> dict[str, float]:
    cosines, opposite, apart = [], [], []
    for (first, one), (second, two) in combinations(zip(updates, norms, strict=True), 2):
        cosines.append(torch.dot(first, second).item() / (one * two))
        product = first.sign() * second.sign()
        opposite.append((product < 0).sum().item() / max(1, product.count_nonzero().item()))
        apart.append((first - second).norm().item() / (one * two) ** 0.5)
    if base is not None:
        size = base.norm().item()
        apart = [norm / size for norm in norms] if size > 0 else []
    found = {"cosine": fmean(cosines), "opposite": fmean(opposite)}
    return found | ({"distance": fmean(apart)} if apart else {})
