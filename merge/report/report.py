"""What a merge did to every module, as numbers and as sentences."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from vlora.merge.adapters.assemble import mean_ess
from vlora.merge.adapters.reading import Inputs
from vlora.merge.curvature.positive import PRECISION_FLOOR
from vlora.merge.low_rank.algebra import cosine, relative_distance
from vlora.merge.methods.lineage import FAR
from vlora.merge.report.conflict import conflict
from vlora.merge.report.ranks import ModuleRank, describe_energy, rank_summary
from vlora.merge.update import LoraUpdate, MergedModule, shared_a

__all__ = ["MergeReport", "describe_module", "merge_notes"]

_KINDS = {
    "separable": "weighted by h alone (separable curvature): expect a small gain over a plain sum; "
    "gather curvature for a larger one",
    "isotropic": "nothing known about the uncertainty (isotropic curvature): gradient matching is the plain sum here; "
    "give posteriors or gather curvature",
}


@dataclass(frozen=True)
class MergeReport:
    """Outcome of a merge, written beside it as ``merge_report.json``."""

    method: str
    rank: str | float
    """As it was asked for."""
    adapters: list[dict[str, Any]]
    """Name, path, weight and hash of each input."""
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per module: rank, ranks of the inputs, curvature, exact, retained_energy, clamped_fraction, lowest cosine between
    two updates, and per adapter ``distance``, the share of its update that the merge lost (0 none, 1 all); and the
    conflict map, see :mod:`vlora.merge.report.conflict`."""
    full_tensors: list[str] = field(default_factory=list)
    """Keys that were averaged whole."""
    notes: list[str] = field(default_factory=list)
    """Sentences a reader should see."""
    conflict: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per adapter the predicted loss over all modules, see :func:`vlora.merge.report.conflict.total_conflict`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method that were given."""
    sensitivity: dict[str, Any] = field(default_factory=dict)
    """What half and twice the prior would change (:mod:`vlora.merge.report.sensitivity`); of gradient matching only."""
    prior: dict[str, Any] = field(default_factory=dict)
    """Path and hash of a prior from a file."""
    keep: dict[str, Any] = field(default_factory=dict)
    """Path, hash and weight of what the base model was to keep."""
    ancestor: dict[str, Any] = field(default_factory=dict)
    """Path and hash of the posterior that all adapters went on from; per module ``from_ancestor`` then says how far
    each adapter's A is from it, |A_t - A_0| / |A_0|."""
    identities: dict[str, Any] = field(default_factory=dict)
    """Golden identities on these inputs, see :mod:`vlora.merge.adapters.identities`; empty if ``verify`` was false."""

    @property
    def rank_summary(self) -> str:
        """Which rank came out, and what it keeps."""
        return rank_summary(self.ranks())

    def ranks(self) -> list[ModuleRank]:
        """Rank of every module."""
        return [
            ModuleRank(
                module,
                row["rank"],
                tuple(row["input_ranks"]),
                row.get("retained_energy"),
                row.get("curvature"),
            )
            for module, row in self.modules.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**dataclasses.asdict(self), "rank_summary": self.rank_summary}


def describe_module(
    updates: Sequence[LoraUpdate], merged: MergedModule, examples: Sequence[int] | None = None
) -> dict[str, Any]:
    """Numbers of one module; distances are in the metric of each adapter's own input Gram where there is one.

    Args:
        updates: The updates that took part.
        merged: What came out.
        examples: Training examples behind each adapter.
    """
    present = [u for u in updates if u.rank > 0]
    cosines = [cosine(first, second) for first, second in combinations(present, 2)]
    return {
        "rank": merged.update.rank,
        "input_ranks": [u.rank for u in present],
        **merged.report,
        "lowest_cosine": min(cosines) if cosines else None,
        "distance": {u.adapter: relative_distance(merged.update, u, u.input_gram) for u in present},
        **conflict(updates, merged.update, examples or [0] * len(updates)),
    }


def merge_notes(inputs: Inputs, report: MergeReport, stochastic: bool) -> list[str]:
    """Sentences about approximations and gaps, most important first."""
    notes = _about_curvature(report) if report.method == "gradient_matching" else []
    return [
        *notes,
        *_about_keep(report),
        *_about_lineage(inputs, report),
        *_about_loss(report),
        *_about_inputs(inputs, stochastic),
        *_about_coverage(inputs, report),
    ]


def _about_curvature(report: MergeReport) -> list[str]:
    kinds = Counter(values["curvature"] for values in report.modules.values())
    total = len(report.modules)
    return [f"{kinds[kind]} of {total} modules: {text}" for kind, text in _KINDS.items() if kinds[kind]]


def _about_keep(report: MergeReport) -> list[str]:
    """What held the merge at the base model, so that the lineage has it."""
    keep = report.keep
    if not keep:
        return []
    return [
        f"keep: the curvature of {keep['path']} (sha256 {keep['sha256'][:12]}) holds the merge at the base model, "
        f"weight {keep['weight']:g}"
    ]


def _about_lineage(inputs: Inputs, report: MergeReport) -> list[str]:
    """Whether the adapters still are in the gauge of their ancestor."""
    start = inputs.ancestor
    if start is None:
        return []
    notes = []
    pairs = zip(inputs.names, inputs.posteriors, strict=True)
    unknown = [name for name, p in pairs if not (p.meta.ancestor or start.is_itself(p))]
    far = [
        (value, name, m) for m, row in report.modules.items() for name, value in row["from_ancestor"].items()
    ]
    value, name, module = max(far, default=(0.0, "", ""))
    if unknown:
        notes.append(
            f"{', '.join(unknown)} does not say what it went on from; its A is up to {value:.2g} |A_0| from the "
            "ancestor's, which is the only sign of one lineage"
        )
    if value > FAR:
        notes.append(
            f"WARNING: A of {name} is {value:.2g} |A_0| away from the ancestor in {module} (above {FAR:g}): the "
            "adapters may no longer share a gauge, and sums of their factors mean little then; compare with a merge "
            "without ancestor"
        )
    pulled = [
        p.meta.prior.get("kind", "zero") != "zero" or p.meta.ancestor.get("included")
        for p in inputs.posteriors
    ]
    if not all(pulled):
        notes.append(
            "one lineage: sites were added relative to the ancestor by their diagonal h, which approximates joint "
            "training and tends to go too far at weights of 1; weights of 1 / number of runs are close to a mean"
        )
    return notes


def _about_loss(report: MergeReport) -> list[str]:
    notes = []
    ranks = report.ranks()
    kept = {row.module: row.retained for row in ranks if row.retained is not None}
    worst = min(kept, key=lambda m: kept[m], default=None)
    if worst is not None and kept[worst] < 1 - 1e-9:
        mean = sum(kept.values()) / len(kept)
        notes.append(
            f"rank: {report.rank} retains {mean:.1%} of the {describe_energy(ranks)} of the merged update on average, "
            f"{kept[worst]:.1%} in {worst}; a higher rank or, where the method has one, lossless retains more"
        )
    shares = {m: v.get("clamped_fraction", 0.0) for m, v in report.modules.items()}
    worst = max(shares, key=lambda m: shares[m], default=None)
    clamped = shares[worst] if worst is not None else 0.0
    if clamped > 0:
        notes.append(
            f"negative weights would have made precisions non-positive; kept at {PRECISION_FLOOR:.0%} of their "
            f"positive part, in up to {clamped:.1%} of a module ({worst})"
        )
    return notes


def _about_inputs(inputs: Inputs, stochastic: bool) -> list[str]:
    notes = []
    plain = [n for n, p in zip(inputs.names, inputs.posteriors, strict=True) if not p.has_hess]
    if plain:
        notes.append(
            f"no posterior in {', '.join(plain)}: the merged adapter is a plain one, without uncertainty"
        )
    elif not stochastic:
        notes.append("the inputs have h on different tensors: the merged adapter has no uncertainty")
    metas = [p.meta for p in inputs.posteriors if p.has_hess]
    heats = [m.num_examples / mean_ess(m) for m in metas]
    if heats and max(heats) > 1.001 * min(heats):
        notes.append(
            f"the temperatures N / ess of the inputs range from {min(heats):.3g} to {max(heats):.3g}; the merged "
            "posterior has the pooled one, sum N / sum ess"
        )
    if len({m.loss_reduction for m in metas}) > 1:
        notes.append(
            "some inputs average their loss over examples, others over tokens; their N h are not one unit"
        )
    return notes


def _about_coverage(inputs: Inputs, report: MergeReport) -> list[str]:
    notes = []
    for name, layout in zip(inputs.names, inputs.layouts, strict=True):
        lacking = [module for module in inputs.modules if module not in layout]
        if lacking:
            notes.append(
                f"{name} leaves {len(lacking)} modules alone (first {lacking[0]}); counted as a zero update"
            )
    if report.full_tensors and inputs.ancestor is None:
        notes.append(
            f"{len(report.full_tensors)} fully trained tensors (first {report.full_tensors[0]}) were averaged, "
            "not summed: they are weights, not updates"
        )
    gauges = {p.meta.gauge for p in inputs.posteriors}
    alone = inputs.ancestor is None and len(inputs.posteriors) > 1
    if alone and len(gauges) == 1 and None not in gauges and not _frozen(inputs):
        notes.append(
            "the adapters share the start of A but trained it, which is no common gauge: their updates are merged as "
            "those of independent adapters are; only a frozen A, or a posterior that all went on from "
            "(ancestor: FOLDER), makes sums by sites"
        )
    return notes


def _frozen(inputs: Inputs) -> bool:
    return all(shared_a([u for u in inputs.updates(m) if u.rank > 0]) for m in inputs.modules)
