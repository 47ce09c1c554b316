"""Which merge keeps most of three adapters for three kinds of text? stories260K, one JSON a unit.

    python -m benchmarks.merge_text.run train --data DATA --stories MODEL --work WORK [--seeds 0 1 2]
    python -m benchmarks.merge_text.run merge --data DATA --stories MODEL --work WORK [--seeds 0 1 2]
    python -m benchmarks.merge_text.run more --data DATA --stories MODEL --work WORK --seeds 0
    python -m benchmarks.merge_text.run joined --data DATA --stories MODEL --work WORK [--seeds 0 1 2]
    python -m benchmarks.merge_text.run mixture --data DATA --stories MODEL --work WORK
    python -m benchmarks.merge_text.run prior --data DATA --stories MODEL --work WORK
    python -m benchmarks.merge_text.table

DATA holds one folder per data set with ``<split>.jsonl.gz`` files, MODEL stories260K in Hugging Face format. Training,
merging and evaluation are the functions behind ``vlora train``, ``vlora merge`` and ``vlora eval``. WORK keeps adapters
and merges; an adapter or a result that exists is not made again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.merge_text.adapters import adapter
from benchmarks.merge_text.arms import ARMS, CURVATURES, Bench, at_default, whole
from benchmarks.merge_text.prior import with_prior
from benchmarks.merge_text.seeds import SETS, mixtures
from benchmarks.merge_text.texts import TEXTS, prepare
from benchmarks.rows import keep_and_tell

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["train", "merge", "more", "joined", "mixture", "prior"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--stories", type=Path, required=True, help="folder of the stories260K model")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for adapters, merges and evaluations"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.stories, prepare(args.data, args.work / "data"), args.work)
    if args.part == "mixture":
        for name in SETS:
            keep_and_tell(RESULTS, "mixture", name, lambda name=name: mixtures(bench, name))
        return
    for seed in args.seeds:
        if args.part in ("merge", "more"):
            arms = ARMS if args.part == "merge" else CURVATURES
            keep_and_tell(
                RESULTS, args.part, str(seed), lambda seed=seed, arms=arms: whole(bench, seed, arms)
            )
            continue
        if args.part in ("prior", "joined"):
            make = with_prior if args.part == "prior" else at_default
            keep_and_tell(RESULTS, args.part, str(seed), lambda seed=seed, make=make: make(bench, seed))
            continue
        for text in (*TEXTS, "joint"):
            keep_and_tell(
                RESULTS, "train", f"{text}_{seed}", lambda text=text, seed=seed: train(bench, text, seed)
            )


def train(bench: Bench, text: str, seed: int) -> dict[str, Any]:
    """One adapter; the record holds what it cost."""
    adapter(text, seed, bench.files, bench.base, bench.work)
    return {"text": text, "seed": seed}


if __name__ == "__main__":
    main()
