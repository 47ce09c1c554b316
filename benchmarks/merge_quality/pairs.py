"""Two adapters at a time: every method there is, slerp too, and element-wise methods in other coordinates.

    python -m benchmarks.merge_quality.pairs --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

All six pairs of the four different tasks and all six pairs of the first four domains, of the adapters that the sets of
four consist of. One JSON per pair, start of A and seed in ``results/pairs``; a unit whose file exists is not repeated.
"""

from dataclasses import dataclass
from itertools import combinations

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.arms import MAIN, OTHERS, Arm
from benchmarks.merge_quality.run import RESULTS, Unit, arguments
from benchmarks.merge_quality.scores import evaluate
from benchmarks.merge_quality.tasks import DOMAINS, MIXED
from benchmarks.rows import keep_and_tell

__all__ = ["ARMS", "Pair", "pairs"]

ARMS = MAIN | OTHERS | {
    "TIES, KnOTS": Arm("ties", {"space": "knots"}),
    "DARE TIES, KnOTS": Arm("dare_ties", {"space": "knots"}),
    "DARE TIES, core space": Arm("dare_ties", {"space": "core"}),
    "DELLA, KnOTS": Arm("della", {"space": "knots"}),
    "DELLA, core space": Arm("della", {"space": "core"}),
}  # fmt: skip
"""Everything that is compared. TSV and Iso-C are the same in every coordinate system, so they stand once."""


@dataclass(frozen=True)
class Pair(Unit):
    """Two adapters of a set of four."""

    first: str = ""
    second: str = ""

    @property
    def four(self) -> tuple[str, ...]:
        """The tasks of the set, in the order in which their adapters have their seeds."""
        return (MIXED if self.family == "mixed" else DOMAINS)[:4]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The two that are merged."""
        return (self.first, self.second)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Nothing else is scored."""
        return ()

    @property
    def whole(self) -> bool:
        """No conflict map."""
        return False

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.family}__{self.first}__{self.second}__{self.gauge}__{self.optimizer}__{self.seed}"


def pairs(seeds: list[int]) -> list[Pair]:
    """Every pair, independent starts first, one seed after the other."""
    return [
        Pair(family, 2, gauge, "ivon", seed, first, second)
        for gauge in ("independent", "shared")
        for seed in seeds
        for family, names in (("mixed", MIXED[:4]), ("domains", DOMAINS[:4]))
        for first, second in combinations(names, 2)
    ]


def main() -> None:
    """One JSON per pair."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for pair in pairs(args.seeds or [0, 1, 2]):
        if args.only in pair.name:
            library.adapters(pair.family, pair.four, pair.gauge, pair.optimizer, pair.seed)
            keep_and_tell(RESULTS, "pairs", pair.name, lambda p=pair: evaluate(p, library, ARMS, test=True))


if __name__ == "__main__":
    main()
