"""MaTS stopped early, and with more prior: conjugate gradients of a few steps from our closed form.

    python -m benchmarks.merge_quality.early_mats tune --data DATA --work WORK [--seeds 100 101] [--only NAME]
    python -m benchmarks.merge_quality.early_mats test --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

The paper takes the number of steps as a regulariser and finds it on validation rows. Conjugate gradients start at the
closed form of ``gradient_matching`` here, so 0 steps are that merge and the steps lie between it and the two-sided
solution. ``tune`` scores steps and tau on validation rows of sets that nothing else uses; ``test`` what was best there,
at its default and best scalar, next to the closed form, on test rows.
"""

import time
from typing import Any

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.arms import FULL, KRONECKER, MAIN, OTHERS, UNDAMPED, Arm, merge
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, TUNING_SEEDS, Unit, arguments, units
from benchmarks.merge_quality.scores import SCALARS, Scorer
from benchmarks.rows import keep_and_tell

STEPS = {0.3: (1, 3, 10, 25), 1.0: (1, 3, 10), 3.0: (1, 3, 10)}
"""Of conjugate gradients, per tau."""
TRIED: dict[str, Arm] = {
    f"{steps} steps, tau {tau:g}": Arm("mats", {**UNDAMPED, "steps": steps, "tau": tau}, rank=FULL)
    for tau, tried in STEPS.items()
    for steps in tried
}
TRIED |= {f"0 steps, tau {tau:g}": Arm("gradient_matching", {**KRONECKER, "tau": tau}) for tau in STEPS}
TRIED["100 steps, tau 0.3"] = OTHERS["MaTS"]
"""On tuning seeds; the last is the default, at most 100 steps."""
CHOSEN = ("1 steps, tau 0.3",)
"""Of them on test rows."""


def main() -> None:
    """One JSON per set of adapters trained with IVON."""
    parser = arguments(str(__doc__))
    parser.add_argument("part", choices=["tune", "test"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    library, tune = Library(args.data, args.work), args.part == "tune"
    for unit in units(args.seeds or list(TUNING_SEEDS if tune else range(3))):
        if unit.optimizer != "ivon" or unit.count == 2 or args.only not in unit.name:
            continue
        if tune and (unit.count != 4 or unit.gauge == "shared"):
            continue
        part = "early_mats_tune" if tune else "early_mats"
        keep_and_tell(RESULTS, part, unit.name, lambda u=unit: compare(u, library, not tune))


def compare(unit: Unit, library: Library, test: bool) -> dict[str, Any]:
    """The merges of one set, and single adapters."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, test)
    found: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    arms = {OURS: MAIN[OURS], **{name: TRIED[name] for name in CHOSEN}} if test else TRIED
    for name, arm in arms.items():
        started = time.process_time()
        merged = merge(arm, adapters)
        seconds = time.process_time() - started
        found[name] = scorer.tuned(merged, SCALARS) if test else {"default": scorer.all(merged)}
        found[name]["merge_seconds"] = seconds
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": found}


if __name__ == "__main__":
    main()
