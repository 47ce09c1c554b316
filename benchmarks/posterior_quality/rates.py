"""Which learning rate does a run of a given length want? IVON.auto at several, on validation rows only.

    python -m benchmarks.posterior_quality.rates --data DATA --work WORK [--jobs 2]
    python -m benchmarks.posterior_quality.rates --data DATA --work WORK --tasks sst2 trec

The eight tasks at 640 rows, and the pool of ``lengths`` with the rows of each length, on a seed of their own; gradients
are clipped as the package does by default. The loss of every step is kept. A run whose file exists is not repeated.
"""

from pathlib import Path
from typing import Any

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results" / "rates"
SEED = 100
RATES = {100: (1e-3, 2e-3, 4e-3), 200: (1e-3, 2e-3, 4e-3), 400: (1e-3, 2e-3)}
POOL_ROWS = {100: 500, 400: 2000, 1600: 8000}
POOL_RATES = (5e-4, 1e-3, 2e-3, 4e-3)


def main() -> None:
    """Run what is missing."""
    run_units(str(__doc__), units(), one)


def units() -> list[tuple[str, int, int, float]]:
    """Task, rows, steps and rate of every run."""
    from benchmarks.posterior_quality.tasks import TASKS, TRAIN_ROWS

    tasks = [
        (task, TRAIN_ROWS, steps, lr) for steps, rates in RATES.items() for task in TASKS for lr in rates
    ]
    return tasks + [("pool", rows, steps, lr) for steps, rows in POOL_ROWS.items() for lr in POOL_RATES]


def one(unit: tuple[str, int, int, float, Path, Path]) -> str:
    """One run, unless its file exists."""
    name, rows, steps, lr, data, work = unit
    target = RESULTS / f"{name}_{steps}_{lr:g}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.pool import cut, load_by_name

    torch.set_num_threads(1)
    task = cut(load_by_name(name, data, work), rows, steps)
    head = {"task": name, "rows": len(task.train), "steps": steps, "lr": lr, "seed": SEED}
    record = keep_record(target, lambda: {**head, **measure(task, lr)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(task: Any, lr: float) -> dict[str, Any]:
    """Validation scores of mean and draws, and the loss of every step."""
    from torch.nn.functional import nll_loss

    from benchmarks.posterior_quality import arms
    from benchmarks.posterior_quality.scores import draws_nll

    losses: list[float] = []
    outcome = arms.auto(task, SEED, test=False, scales=(), lr=lr, max_grad_norm=1.0, losses=losses)
    label = task.validation.label
    mean = outcome.predictions["mean"]["validation"]
    return {
        "nll": float(nll_loss(mean, label)),
        "accuracy": float((mean.argmax(-1) == label).double().mean()),
        "nll_draws": draws_nll(outcome.predictions["draws"]["validation"], label),
        "facts": outcome.facts,
        "losses": [round(v, 4) for v in losses],
    }


if __name__ == "__main__":
    main()
