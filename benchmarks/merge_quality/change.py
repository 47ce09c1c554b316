r"""Votes of one pass by what the adapter changed, which ``curvature: true`` gathers, on all sets of IVON's adapters.

    python -m benchmarks.merge_quality.change --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

Row i counts v_i = KL(adapter || base) nats in the Grams of one pass over the training rows, the base with the adapter's
head (:mod:`vlora.curvature.votes`); beside it one each. Both are merged at the default and at the best scalar. Streamed
Grams with equal votes, RegMean, the mean, the sum and TSV are scored at their defaults on the same adapters. One JSON
per set.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import MAIN, merge
from benchmarks.merge_quality.curvature import loaded
from benchmarks.merge_quality.heads import Way, gathered
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, Unit, arguments, units
from benchmarks.merge_quality.scores import SCALARS, Scorer
from benchmarks.merge_quality.training import logits
from benchmarks.rows import keep_and_tell

__all__ = ["CHANGE", "EQUAL", "compare", "votes_of"]

Key = tuple[str, str, int, str, str]
Grams = dict[str, Tensor]
EQUAL, CHANGE = f"{OURS}, one pass", f"{OURS}, one pass, votes by change"


def main() -> None:
    """One JSON per set of adapters."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library, known = Library(args.data, args.work), dict[Key, Grams]()
    for unit in sorted(units(args.seeds or [0, 1, 2]), key=lambda u: (u.gauge == "shared", u.count)):
        if unit.optimizer == "ivon" and unit.count > 2 and args.only in unit.name:
            keep_and_tell(RESULTS, "change", unit.name, lambda u=unit: compare(u, library, known))


def compare(unit: Unit, library: Library, known: dict[Key, Grams]) -> dict[str, Any]:
    """Scores of one set, and what the rows of each adapter counted.

    Args:
        unit: The set.
        library: Tasks and adapters.
        known: Grams of adapters that sets have in common.
    """
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, True)
    votes = [votes_of(adapter, library) for adapter in adapters]
    arms: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    for name, arm in MAIN.items():
        arms[name] = {"default": scorer.all(merge(arm, adapters))}
    for name, counted in ((EQUAL, [None] * len(adapters)), (CHANGE, votes)):
        for adapter, each in zip(adapters, counted, strict=True):
            key = (unit.family, unit.gauge, unit.seed, adapter.task, name)
            if key not in known:
                known[key] = grams_of(adapter, library, each)
        found = [
            replace(a, tensors={**a.tensors, **known[unit.family, unit.gauge, unit.seed, a.task, name]})
            for a in adapters
        ]
        arms[name] = scorer.tuned(merge(MAIN[OURS], found), SCALARS)
    told = {a.task: _told(v) for a, v in zip(adapters, votes, strict=True)}
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": arms, "votes": told}


@torch.no_grad()
def votes_of(adapter: Adapter, library: Library) -> Tensor:
    """v_i of the training rows, nats, shape ``(N,)``."""
    with_it, without = (
        logits(library.states(adapter.task, "train", deltas), adapter.head()).log_softmax(-1)
        for deltas in (adapter.deltas(), {})
    )
    return (with_it.exp() * (with_it - without)).sum(-1).clamp_min(0)


def grams_of(adapter: Adapter, library: Library, votes: Tensor | None) -> Grams:
    """Input Grams of one pass."""
    rows = library.task(adapter.task).train
    grams = gathered(loaded(adapter), rows, adapter.head(), Way(), votes)
    return {f"{module}.input_gram": gram[0] for module, gram in grams.items()}


def _told(votes: Tensor) -> dict[str, float]:
    """Mean vote, and how many rows the Grams stand on, (sum v)^2 / sum v^2."""
    whole: Sequence[float] = votes.tolist()
    return {"mean": sum(whole) / len(whole), "effective_rows": sum(whole) ** 2 / sum(v * v for v in whole)}


if __name__ == "__main__":
    main()
