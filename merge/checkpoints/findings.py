"""What the rules found while they ran, per tensor, in sentences for the card.

The journal keeps findings with the tensors, so a run that was resumed says the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from vlora.merge.checkpoints.average_rules import Fisher
from vlora.merge.checkpoints.gram_rules import Mats
from vlora.merge.checkpoints.matrix_rules import Tsv
from vlora.merge.checkpoints.stream import TensorJob

__all__ = ["finding_notes"]

_MOSTLY = 0.5


def finding_notes(jobs: Sequence[TensorJob], findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence per thing that a reader should know.

    Args:
        jobs: All tensors, in the order of the model.
        findings: Tensor -> findings of its rule.
    """
    return [*_zero_fishers(jobs, findings), *_rounded(jobs, findings), *_solved(jobs, findings)]


def _zero_fishers(jobs: Sequence[TensorJob], findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    zero: dict[Path, list[str]] = {}
    flat = True
    for job in jobs:
        if isinstance(job.rule, Fisher):
            flat = job.rule.normalise
            for index in findings.get(job.name, {}).get("zero_fisher", ()):
                zero.setdefault(job.inputs[len(job.rule.weights) + index].path, []).append(job.name)
    effect = "all entries count alike there" if flat else "the model does not count there unless all are zero"
    return [
        f"the Fisher information in {path} is all zero in {len(keys)} of {len(jobs)} tensors, first {keys[0]}: {effect}"
        for path, keys in zero.items()
    ]


def _solved(jobs: Sequence[TensorJob], findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How far the solver of MaTS went."""
    known = [(found["steps"], found["residual"]) for found in findings.values() if "steps" in found]
    if not known:
        return []
    limit = min(job.rule.steps for job in jobs if isinstance(job.rule, Mats))
    steps, residual = max(s for s, _ in known), max(r for _, r in known)
    stopped = ", the limit: raise steps" if steps >= limit else ""
    return [
        f"conjugate gradients took up to {steps} steps a matrix{stopped}; residual at most {residual:.2g} of the "
        "right-hand side"
    ]


def _rounded(jobs: Sequence[TensorJob], findings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Matrices most of whose directions may be nothing but the rounding of the stored models."""
    shares = [found["rounded"] for found in findings.values() if "rounded" in found]
    if not shares or max(shares) < _MOSTLY:
        return []
    key = "task_rank" if any(isinstance(job.rule, Tsv) for job in jobs) else "rank"
    return [
        f"up to {max(shares):.0%} of the directions of a matrix (mean {fmean(shares):.0%} over {len(shares)}) are no "
        f"larger than the rounding of the stored models explains; if they are base + LoRA, set {key} to what the "
        "adapters have"
    ]
