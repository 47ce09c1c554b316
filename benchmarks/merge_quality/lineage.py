"""Runs that went on from one ancestor: sums by sites against sums of changes, means, and merges without the ancestor.

    python -m benchmarks.merge_quality.lineage --data DATA --work WORK [--seeds 0 1 2] [--only NAME] [--pulled]

An ancestor is trained on one domain or on four at once; three runs go on from it, each on a domain of its own, without
a pull towards the ancestor. All under the frozen head of the domains. One JSON per ancestor and seed in
``results/lineage``; a unit whose file exists is not repeated. ``--pulled`` trains the runs again under the ancestor's
Gaussian, 1/2 |theta - m_0|^2_{S_0 / N} added to the loss of every draw, for S_0 with and without the part of the
ancestor's prior, and sums them by sites with the same S_0 (``results/lineage_pulled``). IVON's h then is that of the
pulled loss's gradients: at the minimum their mean is 0, so the pull adds next to nothing to their squares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.network import MODULES
from benchmarks.merge_quality.run import RESULTS, arguments
from benchmarks.merge_quality.scores import MEAN_SCALARS, Scorer
from benchmarks.merge_quality.scores import SCALARS as USUAL
from benchmarks.merge_quality.tasks import DOMAINS
from benchmarks.rows import keep_and_tell
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.lineage import distance_from_ancestor
from vlora.merge.update import LoraUpdate

__all__ = ["ARMS", "Lineage", "lineages"]

Deltas = dict[str, Tensor]
SCALARS = (1 / 3, *USUAL)
"""As everywhere, and what makes a mean of a sum over three runs."""
Merge = Callable[[Sequence[LoraUpdate], float], Tensor]
"""Updates of one module, with their ancestor, and a scalar -> dense merged update."""


@dataclass(frozen=True)
class Arm:
    """One way to merge."""

    merge: Merge
    scalars: Sequence[float] = SCALARS
    line: str = ""
    """``base`` or ``ancestor`` where the scalar multiplies the way from there, so that one merge does for all."""

    def deltas(self, updates: Mapping[str, Sequence[LoraUpdate]]) -> Callable[[float], Deltas]:
        """Scalar -> dense merged update per module."""
        if not self.line:
            return lambda s: {module: self.merge(row, s).float() for module, row in updates.items()}
        ends = {module: self.merge(row, 1.0) for module, row in updates.items()}
        starts = {
            module: _start(row[0]).delta() if self.line == "ancestor" else torch.zeros_like(ends[module])
            for module, row in updates.items()
        }
        return lambda s: {m: (starts[m] + s * (end - starts[m])).float() for m, end in ends.items()}


@dataclass(frozen=True)
class Lineage:
    """One ancestor and the runs that went on from it."""

    ancestor: str
    """``one`` or ``four``: domains that it was trained on."""
    seed: int

    @property
    def children(self) -> tuple[str, ...]:
        """Domains of the runs."""
        return DOMAINS[:3]

    @property
    def old(self) -> tuple[str, ...]:
        """Domains of the ancestor."""
        return DOMAINS[4:5] if self.ancestor == "one" else DOMAINS[4:8]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Everything that a merge has data for; scalars are chosen on their validation rows."""
        return (*self.children, *self.old)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Domains that nobody saw."""
        return DOMAINS[8:]

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.ancestor}__{self.seed}"


def lineages(seeds: Sequence[int]) -> list[Lineage]:
    """All units."""
    return [Lineage(ancestor, seed) for seed in seeds for ancestor in ("one", "four")]


def sites(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """The sum of this package, every run of weight ``scalar``."""
    return gradient_matching(updates, [scalar] * len(updates)).update.delta()


def without_prior(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """The same with the ancestor's data alone, S_0 = N_0 h_0 (and 1e-9 of its mean): without N_0 delta_0."""
    return sites([replace(u, ancestor=_bare(_start(u))) for u in updates], scalar)


def changes_of_factors(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """m_0 + s sum (m_t - m_0): sites without curvature."""
    start = _start(updates[0])
    b = start.b + scalar * sum(u.b - start.b for u in updates)
    a = start.a + scalar * sum(u.a - start.a for u in updates)
    return start.scale * b @ a


def changes(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """W_0 + s sum (W_t - W_0): task arithmetic whose base holds the ancestor."""
    start = _start(updates[0]).delta()
    return start + scalar * sum((u.delta() - start for u in updates), torch.zeros_like(start))


def mean_of_factors(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """The plain average of A and of B, its change from the ancestor times the scalar."""
    return changes_of_factors(updates, scalar / len(updates))


def kronecker(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """Kronecker gradient matching of the runs as if they were independent adapters."""
    plain = [replace(u, ancestor=None) for u in updates]
    return scalar * gradient_matching(plain, [1.0] * len(plain), curvature="kronecker").update.delta()


def kronecker_with_ancestor(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """The same with the ancestor as one more independent adapter."""
    plain = [replace(u, ancestor=None) for u in (_start(updates[0]), *updates)]
    return scalar * gradient_matching(plain, [1.0] * len(plain), curvature="kronecker").update.delta()


def kronecker_of_changes(updates: Sequence[LoraUpdate], scalar: float) -> Tensor:
    """W_0 + s times the Kronecker merge of the changes W_t - W_0, each of rank 2 r."""
    start = _start(updates[0])
    moved = [
        replace(
            u, ancestor=None, b=torch.cat([u.b, -start.b], 1), a=torch.cat([u.a, start.a]),
            precision_a=None, precision_b=None,
        )
        for u in updates
    ]  # fmt: skip
    merged = gradient_matching(moved, [1.0] * len(moved), curvature="kronecker").update.delta()
    return start.delta() + scalar * merged


ARMS = {
    "sites": Arm(sites),
    "sites, ancestor's prior left out": Arm(without_prior),
    "sum of changes, factors": Arm(changes_of_factors),
    "sum of changes, updates": Arm(changes, line="ancestor"),
    "mean of factors": Arm(mean_of_factors, MEAN_SCALARS),
    "Kronecker, runs alone": Arm(kronecker, line="base"),
    "Kronecker, runs and ancestor": Arm(kronecker_with_ancestor, line="base"),
    "Kronecker of changes": Arm(kronecker_of_changes, line="ancestor"),
}
"""Everything that is compared."""


def evaluate(unit: Lineage, library: Library) -> dict[str, Any]:
    """Scores of all arms, and how far the runs went."""
    seed, stem = 1000 * unit.seed, f"lineage_{unit.ancestor}_{unit.seed}"
    ancestor = library.descendant(None, f"{stem}_ancestor", unit.old, seed + 500)
    runs = [
        library.descendant(ancestor, f"{stem}_{name}", [name], seed + 501 + i)
        for i, name in enumerate(unit.children)
    ]
    joint = library.descendant(ancestor, f"{stem}_joint", unit.children, seed + 600)
    whole = library.descendant(None, f"{stem}_whole", unit.tasks, seed + 700)
    updates = {module: _updates(ancestor, runs, module) for module in MODULES}
    heads = dict.fromkeys((*unit.tasks, *unit.unseen), ancestor.head())
    scorer: Any = Scorer(library, heads, unit, test=True)  # pyright: ignore[reportArgumentType]
    arms: dict[str, Any] = {
        "no adapter": {"default": scorer.all({})},
        "ancestor": {"default": scorer.all(ancestor.deltas())},
        "own run of each domain": {
            "default": scorer.own(runs)
            | {name: scorer.one(name, ancestor.deltas(), heads[name]) for name in unit.old}
        },
        "going on with all three": {"default": scorer.all(joint.deltas())},
        "everything at once": {"default": scorer.all(whole.deltas())},
    }
    for name, arm in ARMS.items():
        arms[name] = _tuned(scorer, arm.deltas(updates), arm.scalars)
    distances = {
        module: {u.adapter: distance_from_ancestor(u) for u in row} for module, row in updates.items()
    }
    return {
        "ancestor": unit.ancestor, "seed": unit.seed, "tasks": list(unit.children), "old": list(unit.old),
        "unseen": list(unit.unseen), "arms": arms, "from_ancestor": distances,
    }  # fmt: skip


def evaluate_pulled(unit: Lineage, library: Library) -> dict[str, Any]:
    """Scores of sums of runs that were trained under the ancestor's posterior."""
    seed, stem = 1000 * unit.seed, f"lineage_{unit.ancestor}_{unit.seed}"
    ancestor = library.descendant(None, f"{stem}_ancestor", unit.old, seed + 500)
    heads = dict.fromkeys((*unit.tasks, *unit.unseen), ancestor.head())
    scorer: Any = Scorer(library, heads, unit, test=True)  # pyright: ignore[reportArgumentType]
    arms: dict[str, Any] = {}
    distances: dict[str, Any] = {}
    for name, merge, bare in (
        ("sites", sites, False),
        ("sites, ancestor's prior left out", without_prior, True),
    ):
        kind = "data" if bare else "whole"
        runs = [
            library.descendant(
                ancestor, f"{stem}_{task}_{kind}", [task], seed + 501 + i, _precision(ancestor, bare)
            )
            for i, task in enumerate(unit.children)
        ]
        updates = {module: _updates(ancestor, runs, module) for module in MODULES}
        arms[f"{name}, pulled runs"] = _tuned(scorer, Arm(merge).deltas(updates), SCALARS)
        arms[f"own pulled run ({name})"] = {"default": scorer.own(runs)}
        distances[kind] = {
            m: {u.adapter: distance_from_ancestor(u) for u in row} for m, row in updates.items()
        }
    return {
        "ancestor": unit.ancestor, "seed": unit.seed, "tasks": list(unit.children), "old": list(unit.old),
        "unseen": list(unit.unseen), "arms": arms, "from_ancestor": distances,
    }  # fmt: skip


def _precision(ancestor: Adapter, bare: bool) -> Deltas:
    """S_0 of every factor."""
    found = {}
    for module in MODULES:
        start = ancestor.update(module)
        start = _bare(start) if bare else start
        assert start.precision_a is not None
        assert start.precision_b is not None
        found |= {f"{module}.a": start.precision_a, f"{module}.b": start.precision_b}
    return found


def _tuned(scorer: Any, make: Callable[[float], Deltas], scalars: Sequence[float]) -> dict[str, Any]:
    """At the scalar 1, and at the one with the lowest mean validation NLL."""
    found = {s: scorer._validation(make(s)) for s in scalars}
    best = min(found, key=lambda s: found[s])
    return {
        "default": scorer.all(make(1.0)),
        "best": scorer.all(make(best)),
        "scalar": best,
        "validation_nll": {str(s): v for s, v in found.items()},
    }


def _updates(ancestor: Adapter, runs: Sequence[Adapter], module: str) -> list[LoraUpdate]:
    """The runs relative to the ancestor, as a merge reads them."""
    start, found = ancestor.update(module), [run.update(module) for run in runs]
    return [
        replace(
            u, precision_a=u.curvature_a, precision_b=u.curvature_b, prior_a=0.0, prior_b=0.0, ancestor=start
        )
        for u in found
    ]


def _start(update: LoraUpdate) -> LoraUpdate:
    assert update.ancestor is not None
    return update.ancestor


def _bare(start: LoraUpdate) -> LoraUpdate:
    a, b = start.curvature_a, start.curvature_b
    assert a is not None
    assert b is not None
    return replace(
        start, precision_a=a + 1e-9 * a.mean(), precision_b=b + 1e-9 * b.mean(), prior_a=0.0, prior_b=0.0
    )


def main() -> None:
    """One JSON per unit."""
    parser = arguments(str(__doc__))
    parser.add_argument("--pulled", action="store_true", help="runs trained under the ancestor's posterior")
    args = parser.parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for unit in lineages(args.seeds or [0, 1, 2]):
        if args.only in unit.name:
            part, work = ("lineage_pulled", evaluate_pulled) if args.pulled else ("lineage", evaluate)
            keep_and_tell(RESULTS, part, unit.name, lambda u=unit, w=work: w(u, library))


if __name__ == "__main__":
    main()
