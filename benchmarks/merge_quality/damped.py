"""The output side damped: between the two-sided system of MaTS and our closed form.

    python -m benchmarks.merge_quality.damped tune --data DATA --work WORK [--seeds 100 101] [--only NAME]
    python -m benchmarks.merge_quality.damped test --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

S_t becomes (S_t + d I) / (1 + d), with S_t of mean eigenvalue 1: d = 0 is MaTS, d to infinity our closed form. Grams
are streamed with a row's tokens joined. ``tune`` scores every d on validation rows of sets that nothing else uses;
``test`` the two that were best there next to the closed form, on test rows. All at the default scalar, one JSON a set.
"""

import time
from typing import Any

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.arms import FULL, MAIN, Arm, merge
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, TUNING_SEEDS, Unit, arguments, units
from benchmarks.merge_quality.scores import Scorer
from benchmarks.rows import keep_and_tell

__all__ = ["CHOSEN", "DAMPINGS", "compare", "named"]

DAMPINGS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
CHOSEN = (10.0, 3.0)
"""Of them on test rows: level in nats on tuning sets, the first is more often right."""


def main() -> None:
    """One JSON per set of adapters trained with IVON."""
    parser = arguments(str(__doc__))
    parser.add_argument("part", choices=["tune", "test"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    library, tune = Library(args.data, args.work, joined=True), args.part == "tune"
    for unit in units(args.seeds or list(TUNING_SEEDS if tune else range(3))):
        wanted = unit.count == 4 and unit.gauge == "independent" if tune else unit.count > 2
        if wanted and unit.optimizer == "ivon" and args.only in unit.name:
            part = "damped_tune" if tune else "damped"
            keep_and_tell(RESULTS, part, unit.name, lambda u=unit: compare(u, library, not tune))


def named(damping: float) -> str:
    """Name of an arm."""
    return f"two-sided, damping {damping:g}"


def compare(unit: Unit, library: Library, test: bool) -> dict[str, Any]:
    """The merges of one set, and single adapters."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, test)
    found: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    arms = {OURS: MAIN[OURS]} | {"RegMean": MAIN["RegMean"], "TSV": MAIN["TSV"]}
    arms |= {named(d): Arm("mats", {"damping": d}, FULL) for d in (CHOSEN if test else DAMPINGS)}
    for name, arm in arms.items():
        started = time.process_time()
        merged = merge(arm, adapters)
        seconds = time.process_time() - started
        found[name] = {"default": scorer.all(merged), "merge_seconds": seconds}
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": found}


if __name__ == "__main__":
    main()
