r"""Two baselines that weigh by a posterior's diagonal, and how many rows the Grams need.

    python -m benchmarks.merge_quality.baselines --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

*Fisher, raw* is the Fisher average with N h as it is, not scaled to mean 1 per module. *1 / Var* weighs every entry by
the inverse of its posterior variance, which for independent factors is

    Var[DeltaW_ij] = s^2 sum_r ( b_ir^2 v_a,rj + v_b,ir a_rj^2 + v_b,ir v_a,rj ),
    W = ( sum_t DeltaW_t / Var_t ) / ( sum_t 1 / Var_t )     entry by entry.

*Rows*: gradient matching and RegMean with the Grams of one exact pass over the first rows of each task only, in place
of those that were streamed while training. One JSON per set of four adapters trained with IVON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import KRONECKER, Arm, merge
from benchmarks.merge_quality.curvature import loaded, variance
from benchmarks.merge_quality.network import MODULES
from benchmarks.merge_quality.run import RESULTS, Unit, arguments, units
from benchmarks.merge_quality.scores import MEAN_SCALARS, Scorer
from benchmarks.merge_quality.tasks import head
from benchmarks.merge_quality.training import measured
from benchmarks.rows import keep_and_tell

ROWS = (10, 40, 160, 640)
"""Training rows per task that Grams are measured on."""
RAW_FISHER = Arm("fisher", {"normalise": False}, "sum", needs="h")
BY_ROWS = {"gradient matching": Arm("gradient_matching", KRONECKER), "RegMean": Arm("regmean")}


def main() -> None:
    """One JSON per set of adapters."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for unit in units(args.seeds or [0, 1, 2]):
        if unit.count == 4 and unit.optimizer == "ivon" and args.only in unit.name:
            keep_and_tell(RESULTS, "baselines", unit.name, lambda u=unit: compare(u, library))


def compare(unit: Unit, library: Library) -> dict[str, Any]:
    """All of these merges of one set."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, True)
    found = {
        "Fisher, raw": scorer.tuned(merge(RAW_FISHER, adapters), MEAN_SCALARS),
        "1 / Var": scorer.tuned(by_variance(adapters), MEAN_SCALARS),
    }
    for rows in ROWS:
        few = [with_grams_of(adapter, library, rows) for adapter in adapters]
        for name, arm in BY_ROWS.items():
            found[f"{name}, {rows} rows"] = {"default": scorer.all(merge(arm, few))}
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": found}


def by_variance(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The updates' mean weighted by the inverse variance of every entry, per module."""
    merged = {}
    for module in MODULES:
        updates = [adapter.update(module) for adapter in adapters]
        weights = [1 / variance(update) for update in updates]
        pulled = [weight * update.delta() for weight, update in zip(weights, updates, strict=True)]
        merged[module] = (torch.stack(pulled).sum(0) / torch.stack(weights).sum(0)).float()
    return merged


def with_grams_of(adapter: Adapter, library: Library, rows: int) -> Adapter:
    """The adapter with Grams of one pass over its task's first training rows."""
    network = loaded(adapter)
    grams = measured(network, head(library.task(adapter.task).train, rows), adapter.head())
    named: Mapping[str, Tensor] = {k.removeprefix("base_model.model."): v for k, v in grams.items()}
    return replace(adapter, tensors={**adapter.tensors, **named})


if __name__ == "__main__":
    main()
