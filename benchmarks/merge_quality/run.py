"""Which merge keeps most of what single adapters know? MiniLM, one JSON a unit.

    python -m benchmarks.merge_quality.run train --data DATA --work WORK [--seeds 0 1 2]
    python -m benchmarks.merge_quality.run merge --data DATA --work WORK [--seeds 0 1 2]
    python -m benchmarks.merge_quality.run tune --data DATA --work WORK
    python -m benchmarks.merge_quality.curvature --data DATA --work WORK
    python -m benchmarks.merge_quality.gathering --work WORK
    python -m benchmarks.merge_quality.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and adapters; an adapter or a
result that exists is not made again. ``tune`` uses seeds of its own and validation rows only; ``merge`` looks at the
test rows, with settings fixed beforehand and one scalar per method from validation rows.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.scores import Grid, evaluate
from benchmarks.merge_quality.tasks import DOMAINS, MIXED

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (100, 101)
PACKAGES = ("variational-lora", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Unit:
    """One set of adapters to merge."""

    family: str
    """``mixed``: tasks of different kinds with their own heads; ``domains``: one task under one frozen head."""
    count: int
    gauge: str
    """``independent`` seeds of A, or one ``shared`` start."""
    optimizer: str
    seed: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that are merged."""
        return (MIXED if self.family == "mixed" else DOMAINS)[: self.count]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Domains that no merged adapter has seen."""
        return () if self.family == "mixed" else DOMAINS[self.count :][-4:]

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.family}{self.count}__{self.gauge}__{self.optimizer}__{self.seed}"


def units(seeds: list[int]) -> list[Unit]:
    """Everything that is merged, the main comparisons first."""
    out = [Unit("mixed", 4, gauge, "ivon", seed) for seed in seeds for gauge in ("shared", "independent")]
    out += [Unit("domains", 6, gauge, "ivon", seed) for seed in seeds for gauge in ("shared", "independent")]
    out += [Unit("mixed", 4, gauge, "adamw", seed) for seed in seeds for gauge in ("shared", "independent")]
    return out + [
        Unit("domains", count, "independent", "ivon", seed) for seed in seeds for count in (2, 4, 8, 12)
    ]


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["train", "tune", "merge"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and adapters")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--only", help="only units whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    seeds = args.seeds or list(TUNING_SEEDS if args.part == "tune" else range(3))
    for unit in units(seeds):
        if args.only and args.only not in unit.name:
            continue
        if args.part == "train":
            library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
            library.joint(unit.family, unit.tasks, unit.seed)
            print(f"{unit.name}: trained", flush=True)
        else:
            measure(unit, library, args.part)


def measure(unit: Unit, library: Library, part: str) -> None:
    """All methods on one unit, one JSON."""
    write(part, unit.name, lambda: evaluate(unit, library, Grid(test=part == "merge")))


def write(part: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Keep what ``make`` returns, with time, versions and hardware, unless the file exists."""
    target = RESULTS / part / f"{name}.json"
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    started, cpu = time.perf_counter(), time.process_time()
    record = make()
    record |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    record["versions"] = {package: metadata.version(package) for package in PACKAGES}
    record["hardware"] = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": 1}
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.rename(target)
    print(f"{part}/{target.stem}: {record['cpu_seconds']:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
