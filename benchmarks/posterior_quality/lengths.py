"""Do the defaults hold from 100 steps on 500 rows to 10,000 steps on all rows? AdamW and ``IVON.auto``, nothing tuned.

    python -m benchmarks.posterior_quality.lengths --data DATA --work WORK [--jobs 2]

Both have a learning rate of 1e-3 at every length, which was the default of ``IVON.auto`` when these runs were made
(today's is in ``shipped``). One file per run; a run whose file
exists is not repeated.
"""

from pathlib import Path
from typing import Any

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results" / "lengths"
RUNS = ((500, 100, (0, 1, 2)), (2000, 400, (0, 1, 2)), (8000, 1600, (0, 1, 2)), (None, 10_000, (0,)))
"""Training rows (None: all), steps of batch 16, and seeds."""
ARMS = ("adamw", "ivon_auto")
LR = 1e-3


def main() -> None:
    """Run what is missing."""
    units = [(arm, rows, steps, seed) for rows, steps, seeds in RUNS for seed in seeds for arm in ARMS]
    run_units(str(__doc__), units, one)


def one(unit: tuple[str, int | None, int, int, Path, Path]) -> str:
    """One run, unless its file exists."""
    arm, rows, steps, seed, data, work = unit
    target = RESULTS / f"{arm}_{steps}_{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.pool import cut, load_by_name

    torch.set_num_threads(1)
    whole = load_by_name("pool", data, work)
    task = cut(whole, rows or len(whole.train), steps)
    head = {"arm": arm, "task": task.name, "rows": len(task.train), "steps": steps, "seed": seed}
    record = keep_record(target, lambda: {**head, **measure(arm, task, seed)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(arm: str, task: Any, seed: int) -> dict[str, Any]:
    """Facts and scores of one run."""
    from benchmarks.posterior_quality import arms
    from benchmarks.posterior_quality.scores import score_all

    if arm == "adamw":
        outcome = arms.adamw(task, seed, test=True, lr=LR, posthoc=False)
    else:
        outcome = arms.auto(task, seed, test=True, scales=(), lr=LR)
    return {"facts": outcome.facts, "scores": score_all(outcome.predictions, task.labels())}


if __name__ == "__main__":
    main()
