"""Does a posterior tell ambiguous from foreign inputs, and know when to be silent? MiniLM, one JSON a task and seed.

    python -m benchmarks.classification_uq.run practice --data DATA --work WORK
    python -m benchmarks.classification_uq.run train --data DATA --work WORK [--seeds 0 1 2 3 4] [--tasks NAME ...]
    python -m benchmarks.classification_uq.run score --data DATA --work WORK
    python -m benchmarks.classification_uq.run left --data DATA --work WORK [--seeds 100 0 1 2 3 4]
    python -m benchmarks.classification_uq.run share --data DATA --work WORK [--seeds 100 0 1 2 3 4]
    python -m benchmarks.classification_uq.run merge --data DATA --work WORK
    python -m benchmarks.classification_uq.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and predictions; predictions
and results that exist are not made again. ``practice`` has seeds of its own, foreign rows of its own, and no test row:
what is to be changed in a score is decided there. ``train`` keeps what every method says, ``score`` turns it into
numbers. An ensemble is the AdamW run of a seed and three further runs of the task. ``merge`` merges the posteriors
of two domains. The learning rate is the one that posterior_quality found for IVON on validation rows, for AdamW too.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.classification_uq.arms import adamw, adamw_rate, ivon, log_probs, trained_adamw
from benchmarks.classification_uq.left import measure_left, practise_left
from benchmarks.classification_uq.merging import PAIRS, measure_merge
from benchmarks.classification_uq.practice import PRACTICE_SEEDS, measure_practice
from benchmarks.classification_uq.scores import score_task
from benchmarks.classification_uq.share import measure_share, practise_share
from benchmarks.classification_uq.tasks import SHIFT, TASKS, load_task
from benchmarks.posterior_quality.units import best_given
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2, 3, 4)
MEMBERS = (10, 11, 12)
"""Seeds of the further members of ensembles."""
TEST_SPLITS = ("validation", "calibration", "clean", "ambiguous", "near", "far", "shift")


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["practice", "train", "score", "left", "share", "merge"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and predictions")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = args.seeds or list(PRACTICE_SEEDS if args.part == "practice" else SEEDS)
    if args.part == "merge":
        for seed in seeds:
            for pair in PAIRS:
                write(f"merge/{'__'.join(pair)}__{seed}", measure_merge, pair, seed, args.data, args.work)
        return
    for task in args.tasks if args.part == "train" else ():
        further_members(task, args.data, args.work)
    for seed in seeds:
        for task in args.tasks:
            if args.part == "left":
                write(f"left/{task}__{seed}", left, task, seed, args.data, args.work)
            elif args.part == "share":
                for by in ("ivon", "laplace"):
                    write(f"share/{task}__{seed}__{by}", share, task, seed, by, args.data, args.work)
            elif args.part == "practice":
                write(f"practice/{task}__{seed}", practised, task, seed, args.data, args.work)
            elif args.part == "score":
                write(f"main/{task}__{seed}", measure, task, seed, args.work)
            else:
                predicted(task, seed, args.data, args.work)


def write(name: str, make: Any, *arguments: Any) -> None:
    """Keep what ``make`` returns with time, versions and hardware, unless the file exists."""
    record = keep_record(RESULTS / f"{name}.json", lambda: make(*arguments))
    if record is not None:
        print(f"{name}: {record['cpu_seconds']:.0f} s of CPU", flush=True)


def practised(task: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """How well the posterior's parts find the practice rows of one task."""
    return measure_practice(load_task(task, data, work / "features"), seed)


def left(task: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """How much the data left of the prior variance: on test rows, or of a practice seed on practice rows."""
    loaded = load_task(task, data, work / "features")
    if seed in PRACTICE_SEEDS:
        return practise_left(loaded, seed)
    return measure_left(loaded, seed, tuple(split for split in TEST_SPLITS if split in loaded.splits))


def share(task: str, seed: int, by: str, data: Path, work: Path) -> dict[str, Any]:
    """The same at the precision of the directions themselves, of one trainer."""
    loaded = load_task(task, data, work / "features")
    return (practise_share if seed in PRACTICE_SEEDS else measure_share)(loaded, seed, by)


def predicted(task: str, seed: int, data: Path, work: Path) -> None:
    """Train every method on one task and keep what it says, unless that is there."""
    path = kept(work, task, seed)
    if path.exists():
        return
    loaded = load_task(task, data, work / "features")
    splits = tuple(split for split in TEST_SPLITS if split in loaded.splits)
    started = time.process_time()
    single = adamw(loaded, seed, adamw_rate(task), splits)
    posterior = ivon(loaded, seed, best_given("ivon_auto", task), splits)
    tensors = single.tensors | posterior.tensors
    tensors |= {f"label.{split}": loaded.splits[split].label for split in splits}
    facts = single.facts | posterior.facts | {"cpu_seconds": time.process_time() - started}
    write_tensors(path, tensors, facts)


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
    """A file of predictions, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    save_file(tensors, unfinished, {"facts": json.dumps(facts)})
    unfinished.rename(path)
    print(f"{path.stem}: {facts['cpu_seconds']:.0f} s of CPU", flush=True)


def kept(work: Path, task: str, seed: int | str) -> Path:
    """File of the predictions of one task and seed, or of the further members."""
    return work / "predictions" / f"{task}_{seed}.safetensors"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file of predictions."""
    with safe_open(path, "pt") as stored:
        facts = json.loads(stored.metadata()["facts"])
    return load_file(path), facts


def further_members(task: str, data: Path, work: Path) -> None:
    """Train the AdamW runs that every seed's ensemble has beside its own, unless they are there."""
    path = kept(work, task, "members")
    if path.exists():
        return
    loaded = load_task(task, data, work / "features")
    started = time.process_time()
    lr = adamw_rate(task)
    runs = [log_probs(trained_adamw(loaded, seed, lr)[0], loaded, TEST_SPLITS) for seed in MEMBERS]
    tensors = {f"ensemble.{split}": torch.stack([run[split] for run in runs]) for split in runs[0]}
    write_tensors(path, tensors, {"cpu_seconds": time.process_time() - started})


def measure(task: str, seed: int, work: Path) -> dict[str, Any]:
    """Scores of every method on one task and seed."""
    tensors, facts = read(kept(work, task, seed))
    members, more = read(kept(work, task, "members"))
    for name, others in members.items():
        own = tensors[name.replace("ensemble", "adamw")]
        tensors[name] = torch.cat([own[None], others])
    splits = [split for split in TEST_SPLITS if f"label.{split}" in tensors]
    facts["members_cpu_seconds"] = more["cpu_seconds"]
    record = {"task": task, "seed": seed, "facts": facts, "shift": SHIFT.get(task)}
    return record | {"scores": score_task(tensors, splits)}


if __name__ == "__main__":
    main()
