"""The defaults as they are shipped, nothing given and nothing tuned: ``IVON.auto`` and AdamW at the same default rate.

    python -m benchmarks.posterior_quality.shipped --data DATA --work WORK [--jobs 2]

Both clip gradients to norm 1, as Trainer does. The eight tasks at 200 steps, and the pool of ``lengths`` from 100 steps
on 500 rows to 1,600 on 8,000. Test rows. One file per run; a run whose file exists is not repeated.
"""

from pathlib import Path
from typing import Any

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results" / "shipped"
ARMS = ("adamw", "ivon_auto")
SEEDS = (0, 1)
POOL = ((500, 100, (0, 1, 2)), (2000, 400, (0, 1, 2)), (8000, 1600, (0,)))
"""Training rows, steps of batch 16, and seeds."""
WIDTH = 384
CLIP = 1.0


def main() -> None:
    """Run what is missing."""
    run_units(str(__doc__), units(), one)


def units() -> list[tuple[str, str, int, int, int]]:
    """Arm, task, rows, steps and seed of every run."""
    from benchmarks.posterior_quality.tasks import TASKS, TRAIN_ROWS

    pool = [(arm, "pool", rows, steps, seed) for rows, steps, seeds in POOL for seed in seeds for arm in ARMS]
    return pool + [(arm, task, TRAIN_ROWS, 200, seed) for seed in SEEDS for task in TASKS for arm in ARMS]


def one(unit: tuple[str, str, int, int, int, Path, Path]) -> str:
    """One run, unless its file exists."""
    arm, name, rows, steps, seed, data, work = unit
    target = RESULTS / f"{name}_{steps}__{arm}__{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.pool import cut, load_by_name

    torch.set_num_threads(1)
    task = cut(load_by_name(name, data, work), rows, steps)
    head = {"arm": arm, "task": name, "rows": len(task.train), "steps": steps, "seed": seed}
    record = keep_record(target, lambda: {**head, **measure(arm, task, seed)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(arm: str, task: Any, seed: int) -> dict[str, Any]:
    """Facts and scores of one run."""
    from benchmarks.posterior_quality import arms
    from benchmarks.posterior_quality.scores import score_all
    from vlora.ivon.defaults import default_lr

    if arm == "adamw":
        lr = default_lr(WIDTH, task.steps)
        outcome = arms.adamw(task, seed, test=True, lr=lr, posthoc=False, clip=CLIP)
    else:
        outcome = arms.auto(task, seed, test=True, scales=(), max_grad_norm=CLIP)
    return {"facts": outcome.facts, "scores": score_all(outcome.predictions, task.labels())}


if __name__ == "__main__":
    main()
