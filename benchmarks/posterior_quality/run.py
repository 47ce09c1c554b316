"""Does IVON's posterior say more than a point and a temperature? Eight text classification tasks, one JSON a run.

    python -m benchmarks.posterior_quality.run tune --data DATA --work WORK [--jobs 2]
    python -m benchmarks.posterior_quality.run main --data DATA --work WORK [--jobs 2] [--seeds 0 1 2]
    python -m benchmarks.posterior_quality.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and log-probabilities. A run
whose file exists under ``results/`` is not repeated. ``tune`` uses a seed of its own and validation rows only; ``main``
reads AdamW's and the published setting's learning rate of each task from its files.
"""

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import Any

from benchmarks.posterior_quality.units import (
    ENSEMBLE,
    MEMBERS,
    RESULTS,
    deciding_units,
    ensemble_units,
    main_units,
    name_of,
    tuning_units,
)
from benchmarks.rows import keep_record


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["tune", "main"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and log-probabilities")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", help="only these tasks")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from benchmarks.posterior_quality.tasks import TASKS

    tasks = args.tasks or list(TASKS)
    (RESULTS / args.part).mkdir(parents=True, exist_ok=True)
    run_all(tuning_units(tasks) if args.part == "tune" else main_units(tasks, args.seeds), args)
    if args.part == "tune":
        run_all(deciding_units(tasks), args)
    if args.part == "main":
        run_all(ensemble_units(tasks, args.seeds), args)


def run_all(units: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Run units in processes of one thread each."""
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=40) as pool:
        jobs = [(args.part, unit, args.data, args.work) for unit in units]
        for number, line in enumerate(pool.imap_unordered(one, jobs), 1):
            print(f"{number}/{len(units)} {line}", flush=True)


def one(job: tuple[str, dict[str, Any], Path, Path]) -> str:
    """Train and score one unit, unless its file exists."""
    part, unit, data, work = job
    target = RESULTS / part / f"{name_of(unit, part)}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.tasks import load_task

    torch.set_num_threads(1)
    task = load_task(unit["task"], data, work / "features")
    record = keep_record(target, lambda: {**unit, **measure(part, unit, task, work)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(part: str, unit: dict[str, Any], task: Any, work: Path) -> dict[str, Any]:
    """Facts and scores of one unit; in the main part its log-probabilities are kept for ensembles."""
    from safetensors.torch import save_file

    from benchmarks.posterior_quality import arms
    from benchmarks.posterior_quality.scores import draws_nll, score_all

    if unit["arm"].endswith("_ensemble"):
        first = ENSEMBLE * unit["seed"]
        outcome = arms.ensemble(work / MEMBERS[unit["arm"]], task, range(first, first + ENSEMBLE))
    elif unit["arm"] in ("adamw", "adamw_same"):
        outcome = arms.adamw(task, unit["seed"], test=part == "main", **unit["given"])
    elif unit["arm"] in ("adamw_laplace", "adamw_same_laplace"):
        outcome = arms.adamw_laplace(task, unit["seed"], test=part == "main", **unit["given"])
    elif unit["arm"] == "ivon_published":
        outcome = arms.published(task, unit["seed"], test=part == "main", **unit["given"])
    elif unit["arm"] in ("ivon_member", "ivon_wide"):
        outcome = arms.auto(task, unit["seed"], test=True, scales=(), **unit["given"])
    else:
        outcome = arms.auto(task, unit["seed"], test=part == "main", **unit["given"])
    label = task.labels()
    mean = outcome.predictions["mean"]
    record: dict[str, Any] = {
        "facts": outcome.facts,
        "validation_nll": draws_nll(mean["validation"][None], label["validation"]),
    }
    if "draws" in outcome.predictions:
        record["validation_nll_draws"] = draws_nll(
            outcome.predictions["draws"]["validation"], label["validation"]
        )
    if part == "tune":
        return record  # nothing of the test rows
    if unit["arm"] in MEMBERS.values():
        kept = work / unit["arm"] / f"{task.name}_{unit['seed']}.safetensors"
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(outcome.predictions.get("draws", mean), kept)
    record["scores"] = score_all(outcome.predictions, label)
    return record


if __name__ == "__main__":
    main()
