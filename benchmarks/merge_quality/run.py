"""Which merge keeps most of what single adapters know? MiniLM, one JSON a unit.

    python -m benchmarks.merge_quality.run train --data DATA --work WORK [--seeds 0 1 2] [--only NAME]
    python -m benchmarks.merge_quality.run merge --data DATA --work WORK
    python -m benchmarks.merge_quality.run more --data DATA --work WORK
    python -m benchmarks.merge_quality.run joint --data DATA --work WORK
    python -m benchmarks.merge_quality.run votes --data DATA --work WORK
    python -m benchmarks.merge_quality.run tune --data DATA --work WORK
    python -m benchmarks.merge_quality.curvature --data DATA --work WORK
    python -m benchmarks.merge_quality.gathering --work WORK
    python -m benchmarks.merge_quality.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. WORK keeps features and adapters; an adapter or a
result that exists is not made again. ``merge`` has the main methods, ``more`` the others, and for four adapters merges
at their rank, curvature taken apart, and the conflict check; both look at the test rows, with settings fixed beforehand
and one scalar per method from validation rows. ``joint`` trains and scores one adapter on all tasks of a set. ``votes``
trains IVON's adapters again with Grams in which a visit counts by the size of its gradient. ``tune`` does what
``merge`` and ``more`` do on seeds of its own, with validation rows only.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.arms import MAIN, MORE, OTHERS, VOTED, VOTES
from benchmarks.merge_quality.scores import evaluate, evaluate_joint
from benchmarks.merge_quality.tasks import DOMAINS, MIXED
from benchmarks.rows import keep_and_tell

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (100, 101)


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
    def whole(self) -> bool:
        """Whether merges at the adapters' rank, curvature taken apart and the conflict map are wanted too."""
        return self.count == 4

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.family}{self.count}__{self.gauge}__{self.optimizer}__{self.seed}"


def units(seeds: list[int]) -> list[Unit]:
    """Everything that is merged, the main comparisons first."""
    out = [Unit("mixed", 4, gauge, "ivon", seed) for seed in seeds for gauge in ("shared", "independent")]
    out += [Unit("domains", 4, gauge, "ivon", seed) for seed in seeds for gauge in ("shared", "independent")]
    out += [Unit("mixed", 4, gauge, "adamw", seed) for seed in seeds for gauge in ("shared", "independent")]
    out += [Unit("domains", count, "independent", "ivon", seed) for seed in seeds for count in (2, 4, 8, 12)]
    return out + [Unit("mixed", count, "independent", "ivon", seed) for seed in seeds for count in (8, 12)]


def arguments(description: str) -> argparse.ArgumentParser:
    """What every part of this benchmark is told."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for features and adapters")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--only", default="", help="only units whose name holds this")
    return parser


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = arguments(str(__doc__))
    parser.add_argument("part", choices=["train", "merge", "more", "joint", "votes", "tune"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work, "change" if args.part == "votes" else "equal")
    for unit in units(args.seeds or list(TUNING_SEEDS if args.part == "tune" else range(3))):
        if args.only in unit.name:
            run_unit(unit, library, args.part)


def run_unit(unit: Unit, library: Library, part: str) -> None:
    """One set of adapters in one part."""
    if part == "train":
        library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
        print(f"{unit.name}: trained", flush=True)
    elif part == "joint":
        name = f"{unit.family}{unit.count}__{unit.seed}"
        keep_and_tell(RESULTS, part, name, lambda: evaluate_joint(unit, library))
    else:
        if part == "votes" and unit.optimizer != "ivon":
            return  # only Grams that are gathered on the way
        votes = VOTES if unit.family == "mixed" else {VOTED: VOTES[VOTED]}
        arms = {"merge": MAIN, "more": MORE if unit.whole else OTHERS, "tune": MAIN | MORE, "votes": votes}[
            part
        ]
        keep_and_tell(RESULTS, part, unit.name, lambda: evaluate(unit, library, arms, test=part != "tune"))


if __name__ == "__main__":
    main()
