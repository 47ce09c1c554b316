"""Every merge at its best scalar out of a wide grid: steps of root two from .09, about 1/12, to 8.

    python -m benchmarks.merge_quality.wide --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

The five scalars of :mod:`benchmarks.merge_quality.run` end before the best one of many methods. Here they have one
grid, those that are means too, so that the sum at 1/T is the mean. Left out are methods whose best scalar lay inside
the five (MaTS, TIES in core space), and with more than four adapters those that weigh by h, whose merges take longest,
and the sum with drops at random. One JSON per set of adapters trained with IVON; as before, validation rows
choose, test rows are scored. Adapters are of one version: compare within.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import MAIN, OTHERS, Arm, merge
from benchmarks.merge_quality.baselines import RAW_FISHER, by_variance
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, Unit, arguments, units
from benchmarks.merge_quality.scores import Scorer, fits
from benchmarks.rows import keep_and_tell

SEPARABLE = "gradient matching, separable h"
GRID = (0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Factors on the merged update of every method."""
ARMS: dict[str, Arm] = MAIN | {
    name: OTHERS[name] for name in ("slerp", "TIES", "DARE TIES", "DELLA", "Iso-C")
}
UP_TO_FOUR: dict[str, Arm] = {
    **{name: OTHERS[name] for name in ("DARE linear", "Fisher", SEPARABLE)},
    "Fisher, raw": RAW_FISHER,
}
"""Not with more adapters, as is 1 / Var."""


def main() -> None:
    """One JSON per set of adapters."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for unit in units(args.seeds or [0, 1, 2]):
        if unit.optimizer == "ivon" and args.only in unit.name:
            keep_and_tell(RESULTS, "wide", unit.name, lambda u=unit: compare(u, library))


def compare(unit: Unit, library: Library) -> dict[str, Any]:
    """All of these merges of one set, and single adapters."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, True)
    found: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    for name, deltas in merges(adapters).items():
        found[name] = scorer.chosen(deltas, GRID)
        if name == OURS:
            found[name]["default"] = scorer.all(deltas)
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": found}


def merges(adapters: Sequence[Adapter]) -> dict[str, dict[str, Tensor]]:
    """The updates that are scaled, per module."""
    few = len(adapters) <= 4
    arms = {name: arm for name, arm in (ARMS | UP_TO_FOUR if few else ARMS).items() if fits(arm, adapters)}
    found = {name: merge(arm, adapters) for name, arm in arms.items()}
    return {**found, "1 / Var": by_variance(adapters)} if few else found


if __name__ == "__main__":
    main()
