"""Is separable h better on domains because its update is shorter? Lengths of modules exchanged between two merges.

    python -m benchmarks.merge_quality.length --data DATA --work WORK [--seeds 100 101] [--only NAME]

X_m and Y_m are the updates of module m under Kronecker gradient matching and under the separable h. *With the other's
lengths* X_m is scaled to |Y_m| module by module, and Y_m to |X_m|; each is then scored over the grid of
:mod:`benchmarks.merge_quality.wide`, which scales all modules together. Validation rows of tuning sets only.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.arms import MAIN, OTHERS, merge
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, TUNING_SEEDS, Unit, arguments, units
from benchmarks.merge_quality.scores import Scorer
from benchmarks.merge_quality.wide import GRID, SEPARABLE
from benchmarks.rows import keep_and_tell

BESIDE = ("linear (mean)", "Fisher")


def main() -> None:
    """One JSON per tuning set of four."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for unit in units(args.seeds or list(TUNING_SEEDS)):
        if (
            unit.optimizer == "ivon"
            and unit.count == 4
            and unit.gauge == "independent"
            and args.only in unit.name
        ):
            keep_and_tell(RESULTS, "length", unit.name, lambda u=unit: compare(u, library))


def compare(unit: Unit, library: Library) -> dict[str, Any]:
    """Both merges with either's lengths, and two others."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, False)
    merges = {name: merge((MAIN | OTHERS)[name], adapters) for name in (OURS, SEPARABLE, *BESIDE)}
    merges[f"{OURS}, lengths of separable h"] = with_lengths(merges[OURS], merges[SEPARABLE])
    merges[f"{SEPARABLE}, lengths of Kronecker"] = with_lengths(merges[SEPARABLE], merges[OURS])
    found = {name: scorer.tuned(deltas, GRID) for name, deltas in merges.items()}
    lengths = {
        name: {m: delta.norm().item() for m, delta in deltas.items()} for name, deltas in merges.items()
    }
    record = {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen)}
    return {**record, "arms": found, "lengths": lengths}


def with_lengths(deltas: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every module's update with the Frobenius norm of the other's."""
    return {m: delta * (others[m].norm() / delta.norm()) for m, delta in deltas.items()}


if __name__ == "__main__":
    main()
