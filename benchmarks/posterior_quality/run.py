"""Does IVON's posterior say more than a point and a temperature? Eight text classification tasks, one JSON a run.

    python -m benchmarks.posterior_quality.run tune --data DATA --work WORK [--jobs 2]
    python -m benchmarks.posterior_quality.run main --data DATA --work WORK [--jobs 2] [--seeds 0 1 2]
    python -m benchmarks.posterior_quality.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and log-probabilities. A run
whose file exists under ``results/`` is not repeated. ``tune`` uses a seed of its own and validation rows only; ``main``
reads AdamW's and the published setting's learning rate of each task from its files.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (100, 101, 102)
CLOSE = 0.025
"""Nats: settings that are so close to the best on the first tuning seed are compared on all three."""
GRID: dict[str, list[dict[str, float]]] = {
    "adamw": [{"lr": 5e-4}, {"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "ivon_published": [{"lr": 0.03}, {"lr": 0.3}, {"lr": 3.0}],
    "ivon_auto": [
        {"noise_cost": 0.003, "lr": 1e-3},
        {"noise_cost": 0.01, "lr": 1e-3},
        {"noise_cost": 0.03, "lr": 1e-3},
        {"noise_cost": 0.01, "lr": 5e-4},
        {"noise_cost": 0.01, "lr": 3e-3},
    ],
}
ENSEMBLE = 4
"""Members. Ensemble s has the AdamW runs of seeds 4 s to 4 s + 3, so that no two share a run."""
IVON_ENSEMBLES = 1
MEMBERS = {"adamw_ensemble": "adamw", "ivon_ensemble": "ivon_member"}
"""Ensemble -> the arm whose log-probabilities are kept for it."""
NOISE_COST = 0.01
"""Default of ``IVON.auto``."""
WIDE = 0.03
"""A noise that costs three times as much."""


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


def tuning_units(tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm with every setting of its grid."""
    return [
        {"task": task, "arm": arm, "seed": TUNING_SEEDS[0], "given": given}
        for task in tasks
        for arm, grid in GRID.items()
        for given in grid
    ]


def deciding_units(tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Settings of AdamW and IVON auto that the first seed does not tell apart, on the other tuning seeds."""
    return [
        {"task": task, "arm": arm, "seed": seed, "given": record["given"]}
        for task in tasks
        for arm in ("adamw", "ivon_auto")
        for close in [close_to_best(arm, task)]
        for record in close
        for seed in TUNING_SEEDS[1:]
        if len(close) > 1
    ]


def main_units(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every arm with its setting, task and seed, AdamW at IVON's rate where its own is another, then members."""
    units = [
        {"task": task, "arm": arm, "seed": seed, "given": best_given(arm, task)}
        for seed in seeds
        for task in tasks
        for arm in ("ivon_auto", "adamw_laplace", "adamw", "ivon_published")
    ]
    same = [
        {"task": task, "arm": "adamw_same", "seed": seed, "given": {"lr": rate, "posthoc": False}}
        for seed in seeds
        for task in tasks
        for rate in [best_given("ivon_auto", task)["lr"]]
        if rate != best_given("adamw", task)["lr"]
    ]
    wide = [
        {
            "task": task,
            "arm": "ivon_wide",
            "seed": seed,
            "given": {**best_given("ivon_auto", task), "noise_cost": WIDE},
        }
        for seed in seeds
        for task in tasks
    ]
    members = [
        {"task": task, "arm": "adamw", "seed": seed, "given": {**best_given("adamw", task), "posthoc": False}}
        for seed in range(ENSEMBLE * len(seeds))
        for task in tasks
        if seed not in seeds
    ]
    mixed = [
        {"task": task, "arm": "ivon_member", "seed": seed, "given": best_given("ivon_auto", task)}
        for seed in range(ENSEMBLE * IVON_ENSEMBLES)
        for task in tasks
    ]
    return units + same + members + wide + mixed


def ensemble_units(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Ensembles of ``ENSEMBLE`` runs: of AdamW one a seed, of IVON's posteriors ``IVON_ENSEMBLES``."""
    counts = {"adamw_ensemble": len(seeds), "ivon_ensemble": IVON_ENSEMBLES}
    return [
        {"task": task, "arm": arm, "seed": seed, "given": {}}
        for arm, count in counts.items()
        for seed in range(count)
        for task in tasks
    ]


def best_given(arm: str, task: str) -> dict[str, float]:
    """Setting with the lowest NLL on the validation rows of this task: of the mean, for ``ivon_auto`` of the draws.

    For ``ivon_auto`` only the learning rate is chosen per task, as for AdamW; the cost of the noise is its default.
    """
    arm = arm.removesuffix("_laplace")
    close = close_to_best(arm, task)
    if arm == "ivon_published" or len(close) == 1:
        return close[0]["given"]
    means = []
    for record in close:
        others = [tuned(task, arm, record["given"], seed) for seed in TUNING_SEEDS[1:]]
        means.append(sum(validation_nll(one) for one in (record, *others)) / len(TUNING_SEEDS))
    return close[means.index(min(means))]["given"]


def close_to_best(arm: str, task: str) -> list[dict[str, Any]]:
    """Records of the first tuning seed within ``CLOSE`` of the lowest NLL, that one first."""
    records = [tuned(task, arm, given, TUNING_SEEDS[0]) for given in GRID[arm]]
    if arm == "ivon_auto":
        records = [record for record in records if record["given"]["noise_cost"] == NOISE_COST]
    records.sort(key=validation_nll)
    return [r for r in records if validation_nll(r) - validation_nll(records[0]) <= CLOSE]


def tuned(task: str, arm: str, given: dict[str, float], seed: int) -> dict[str, Any]:
    """The record of one tuning run."""
    unit = {"task": task, "arm": arm, "seed": seed, "given": given}
    path = RESULTS / "tune" / f"{name_of(unit, 'tune')}.json"
    if not path.exists():
        raise SystemExit(f"run the part 'tune' first: {path.name} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def validation_nll(record: dict[str, Any]) -> float:
    """What a setting is chosen by: of the draws where there are any that matter, else of the mean."""
    return record["validation_nll_draws" if record["arm"] == "ivon_auto" else "validation_nll"]


def name_of(unit: dict[str, Any], part: str) -> str:
    """File name of a unit."""
    head = f"{unit['task']}__{unit['arm']}__"
    if part != "tune":
        return f"{head}{unit['seed']}"
    name = head + "_".join(f"{key}{value:g}" for key, value in unit["given"].items())
    return name if unit["seed"] == TUNING_SEEDS[0] else f"{name}__{unit['seed']}"


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
    elif unit["arm"] == "adamw_laplace":
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
