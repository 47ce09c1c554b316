"""Does a posterior tell ambiguous from foreign inputs, and know when to be silent? MiniLM, one JSON a task and seed.

    python -m benchmarks.classification_uq.run practice --data DATA --work WORK
    python -m benchmarks.classification_uq.run main --data DATA --work WORK [--seeds 0 1 2 3 4] [--tasks NAME ...]
    python -m benchmarks.classification_uq.run merge --data DATA --work WORK
    python -m benchmarks.classification_uq.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and predictions; predictions
and results that exist are not made again. ``practice`` has seeds of its own, foreign rows of its own, and no test row:
what is to be changed in a score is decided there. ``main`` trains what is missing for every task and seed, then
scores it; its ensembles hold the AdamW runs of four seeds. ``merge`` merges the posteriors of two domains. Learning
rates are those that posterior_quality found on validation rows.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.classification_uq.arms import adamw, ivon
from benchmarks.classification_uq.merging import PAIRS, measure_merge
from benchmarks.classification_uq.scores import score_task
from benchmarks.classification_uq.tasks import SHIFT, TASKS, load_task
from benchmarks.posterior_quality.run import ENSEMBLE, best_given
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results"
PRACTICE_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)
PRACTICE_SPLITS = ("validation", "calibration", "practice")
TEST_SPLITS = ("validation", "calibration", "clean", "ambiguous", "near", "far", "shift")


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["practice", "main", "merge"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and predictions")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = args.seeds or list(PRACTICE_SEEDS if args.part == "practice" else SEEDS)
    if args.part == "merge":
        for pair in PAIRS:
            for seed in seeds:
                write(f"merge/{'__'.join(pair)}__{seed}", measure_merge, pair, seed, args.data, args.work)
        return
    for seed in seeds:
        for task in args.tasks:
            predicted(task, seed, args.part, args.data, args.work)
    if args.part == "main":
        for task in args.tasks:
            for seed in seeds:
                write(f"main/{task}__{seed}", measure, task, seed, args.work)


def write(name: str, make: Any, *arguments: Any) -> None:
    """Keep what ``make`` returns with time, versions and hardware, unless the file exists."""
    record = keep_record(RESULTS / f"{name}.json", lambda: make(*arguments))
    if record is not None:
        print(f"{name}: {record['cpu_seconds']:.0f} s of CPU", flush=True)


def predicted(task: str, seed: int, part: str, data: Path, work: Path) -> None:
    """Train every method on one task and keep what it says, unless that is there."""
    path = kept(work, task, seed)
    if path.exists():
        return
    loaded = load_task(task, data, work / "features")
    splits = PRACTICE_SPLITS if part == "practice" else TEST_SPLITS
    splits = tuple(split for split in splits if split in loaded.splits)
    started = time.process_time()
    single = adamw(loaded, seed, best_given("adamw", task)["lr"], splits)
    posterior = ivon(loaded, seed, best_given("ivon_auto", task), splits)
    tensors = single.tensors | posterior.tensors
    tensors |= {f"label.{split}": loaded.splits[split].label for split in splits}
    facts = single.facts | posterior.facts | {"cpu_seconds": time.process_time() - started}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"facts": json.dumps(facts)})
    partial.rename(path)
    print(f"{path.stem}: {facts['cpu_seconds']:.0f} s of CPU", flush=True)


def kept(work: Path, task: str, seed: int) -> Path:
    """File of the predictions of one task and seed."""
    return work / "predictions" / f"{task}_{seed}.safetensors"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file of predictions."""
    with safe_open(path, "pt") as stored:
        facts = json.loads(stored.metadata()["facts"])
    return load_file(path), facts


def measure(task: str, seed: int, work: Path) -> dict[str, Any]:
    """Scores of every method on one task and seed; the ensemble has the AdamW runs of this seed and the next ones."""
    tensors, facts = read(kept(work, task, seed))
    members = [read(kept(work, task, (seed + i) % len(SEEDS)))[0] for i in range(ENSEMBLE)]
    splits = [split for split in TEST_SPLITS if f"label.{split}" in tensors]
    tensors |= {f"ensemble.{s}": torch.stack([member[f"adamw.{s}"] for member in members]) for s in splits}
    record = {"task": task, "seed": seed, "facts": facts, "shift": SHIFT.get(task)}
    return record | {"scores": score_task(tensors, splits)}


if __name__ == "__main__":
    main()
