"""Which rank a merge has, and what that keeps, in words: "32 = 4 x 8, nothing cut; `rank: keep` would cut to 8"."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ModuleRank", "describe_energy", "rank_summary"]

_EXACT = 1 - 1e-9
_SHOWN = 3
_METRICS = {
    "kronecker": "curvature-weighted energy",
    "mats": "curvature-weighted energy",
    "activations": "input-weighted energy",
}


@dataclass(frozen=True)
class ModuleRank:
    """One module of a merge, done or planned."""

    module: str
    rank: int | None
    """That comes out; None where a share of energy will decide."""
    inputs: tuple[int, ...]
    """Ranks of the adapters that have the module."""
    retained: float | None = None
    """Share of the energy that the rank keeps, 1 is all of it; None where it is not known."""
    curvature: str | None = None
    """What weighted the merge, and with it the energy."""


def rank_summary(rows: Sequence[ModuleRank]) -> str:
    """Ranks, commonest first, and whether anything was cut.

    Args:
        rows: All modules of the merge.

    Returns:
        Words that follow "rank"; empty without modules.
    """
    kinds = Counter((row.rank, row.inputs) for row in rows)
    told = [
        _kind(*kind) + (f" in {count} of {len(rows)} modules" if len(kinds) > 1 else "")
        for kind, count in kinds.most_common(_SHOWN)
    ]
    if len(kinds) > _SHOWN:
        told.append(f"{len(kinds) - _SHOWN} more kinds")
    known = [row.retained for row in rows if row.retained is not None]
    if not rows or not known:
        return ", ".join(told)
    if min(known) < _EXACT:
        return f"{', '.join(told)}, {sum(known) / len(known):.1%} of the {describe_energy(rows)} retained"
    if len(known) < len(rows):
        return ", ".join(told)
    return f"{', '.join(told)}, nothing cut{_kept(rows)}"


def describe_energy(rows: Sequence[ModuleRank]) -> str:
    """What ``retained`` is a share of: the squared norm, in the metric of the merge where it has one."""
    names = {_METRICS.get(row.curvature or "", "energy") for row in rows}
    return names.pop() if len(names) == 1 else "energy (weighted where there is curvature)"


def _kind(rank: int | None, inputs: tuple[int, ...]) -> str:
    if rank is None:
        return "by energy"
    if len(inputs) < 2:
        return str(rank)
    same = len(set(inputs)) == 1
    together = f"{len(inputs)} x {inputs[0]}" if same else " + ".join(map(str, inputs))
    return f"{rank} {'=' if rank == sum(inputs) else 'from'} {together}"


def _kept(rows: Sequence[ModuleRank]) -> str:
    """What ``keep`` would do, where the ranks grew and it is possible."""
    grown = [row for row in rows if row.rank is not None and row.rank > max(row.inputs, default=0)]
    if not grown or any(len(set(row.inputs)) > 1 for row in rows):
        return ""
    common = Counter(row.inputs[0] for row in grown).most_common(1)[0][0]
    return f"; `rank: keep` would cut to {common}"
