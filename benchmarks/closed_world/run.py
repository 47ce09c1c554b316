"""Does a LoRA posterior know whom it was never told about? One JSON a world and method.

    python -m benchmarks.closed_world.run tune --work WORK
    python -m benchmarks.closed_world.run main --work WORK [--seeds 0 1 2 3 4] [--units adamw ivon ...]
    python -m benchmarks.closed_world.run merge --work WORK [--seeds 0 1 2 3 4]
    python -m benchmarks.closed_world.run posterior --work WORK [--seeds 0 1 2 3 4]
    python -m benchmarks.closed_world.run scales --work WORK       # merges of A and B at their best factors
    python -m benchmarks.closed_world.run merge4 --work WORK       # the same of four adapters
    python -m benchmarks.closed_world.run features --work WORK
    python -m benchmarks.closed_world.run unlearning --work WORK
    python -m benchmarks.closed_world.run extra --work WORK        # one tuning world
    python -m benchmarks.closed_world.run road --work WORK         # by the package's own commands
    python -m benchmarks.closed_world.run left --work WORK --seeds 100 0 1 2 3 4
    python -m benchmarks.closed_world.run score --work WORK        # all of these again, from what WORK keeps
    python -m benchmarks.closed_world.table

WORK keeps worlds, adapters and log-probabilities. A unit whose file exists under ``results/`` is not repeated, nor an
adapter that is trained. ``tune`` has worlds of its own; the other parts read the learning rates from its files.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_world import after, arms, extra, features, left, merging, removal, road, sweeps
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said, nll_of, score
from benchmarks.closed_world.worlds import ADAPTERS, questions, world_files
from benchmarks.rows import keep_record
from vlora import Posterior
from vlora.files import atomic_write, strict_json

RESULTS = Path(__file__).parent / "results"
TUNING_WORLDS = (100, 101)
GRID: dict[str, list[dict[str, Any]]] = {
    "adamw": [{"name": "adamw", "lr": lr} for lr in (3e-3, 5e-3, 1e-2)],
    "ivon": [
        *({"name": "ivon", "lr": lr} for lr in (3e-3, 5e-3, 1e-2)),
        *({"name": "ivon", "lr": 5e-3, "noise_cost": cost} for cost in (0.03, 0.1)),
        {"name": "ivon", "hess_approx": "price", "ess": 1e5},
    ],
}
"""``optimizer:`` blocks; IVON without a learning rate would take 3.9e-3."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["tune", *PARTS, "score"])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for worlds, adapters, log-probabilities"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="worlds")
    parser.add_argument("--units", nargs="+", default=["*"], help="names of units, with * for any letters")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    if args.part == "tune":
        tune(args.work, args.seeds or TUNING_WORLDS)
        return
    optimizers = {arm: best(arm) for arm in GRID}
    for seed in args.seeds or (TUNING_WORLDS[:1] if args.part == "extra" else range(5)):
        for part in SCORED if args.part == "score" else [args.part]:
            for name, make in PARTS[part](seed, optimizers, args.work).items():
                target = RESULTS / part / f"{name}_{seed}.json"
                if not any(fnmatch(name, pattern) for pattern in args.units):
                    continue
                if args.part != "score":
                    keep(target, make)
                elif target.exists() and not name.endswith("_alone"):
                    rescore(target, make())


def rescore(target: Path, found: dict[str, Any]) -> None:
    """Replace the numbers of a record that predictions on disk give; its times stay."""
    record = json.loads(target.read_text(encoding="utf-8"))
    record |= {key: found[key] for key in ("scores", "recall", "facts") if key in found}
    atomic_write(target, strict_json(record))


def keep(target: Path, make: Any) -> None:
    """Make a unit unless its file exists, and say how long it took."""
    record = keep_record(target, make)
    print(
        f"{target.stem}: {'there' if record is None else format(record['seconds'], '.0f') + ' s'}", flush=True
    )


def tune(work: Path, seeds: Sequence[int]) -> None:
    """Adapter A of the tuning worlds with every setting of the grid."""
    for seed in seeds:
        for arm, grid in GRID.items():
            for optimizer in grid:
                make = partial(trial, arm, optimizer, seed, work)
                keep(RESULTS / "tune" / f"{name_of(optimizer)}_{seed}.json", make)


def name_of(optimizer: dict[str, Any]) -> str:
    """File name of a setting."""
    return "_".join(f"{key}{value}" if key != "name" else value for key, value in optimizer.items())


def trial(arm: str, optimizer: dict[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """NLL of one setting on labelled rows of people that were taught; nothing about unknown people."""
    files = world_files(seed, work)
    asked = questions(seed, files, "a")
    folder = work / f"world_{seed}" / name_of(optimizer)
    setting = arms.Setting(seed, files, "a", asked, folder, {arm: optimizer})
    posterior = Posterior.from_pretrained(setting.trained(arm))
    with wearing(posterior) as model:
        said = {"mean": Said(setting.items.at_mean(model).numpy())}
        if posterior.has_hess:
            draws = setting.items.under_draws(model, posterior).numpy()
            said["draws"] = Said.of_draws(draws, antithetic=True)
    nll = {name: [nll_of(one, asked, part) for part in ("fit", "threshold")] for name, one in said.items()}
    found = {name: sum(values) / 2 for name, values in nll.items()}
    return {"arm": arm, "world": seed, "optimizer": optimizer, "nll": found}


def best(arm: str) -> dict[str, Any]:
    """Setting with the lowest mean NLL over the tuning worlds: of the mean, for IVON of the draws."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "tune").glob("*.json"))
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["arm"] == arm:
            found.setdefault(name_of(record["optimizer"]), []).append(record)
    if len(found) < len(GRID[arm]):
        raise SystemExit(f"run the part 'tune' first: {arm} has {len(found)} of {len(GRID[arm])} settings")
    means = {
        name: sum(r["nll"].get("draws", r["nll"]["mean"]) for r in own) / len(own)
        for name, own in found.items()
    }
    return found[min(means, key=means.__getitem__)][0]["optimizer"]


def main_units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """One unit an arm: what its two adapters say before any merge."""
    return {arm: partial(unit, arm, seed, optimizers, work) for arm in arms.ARMS}


def unit(arm: str, seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Any]:
    """Scores of one method's two adapters, each about its own people."""
    files = world_files(seed, work)
    record: dict[str, Any] = {
        "arm": arm,
        "world": seed,
        "optimizer": optimizers.get(arm),
        "scores": {},
        "facts": {},
    }
    for adapter in ADAPTERS:
        asked = questions(seed, files, adapter)
        setting = arms.Setting(seed, files, adapter, asked, work / f"world_{seed}", optimizers)
        found = arms.said(arm, setting)
        base = arms.said("base", setting)["mean"]
        record["scores"][adapter] = {name: score(said, asked, base) for name, said in found.items()}
        record["facts"][adapter] = found.facts
    return record


PARTS: dict[str, Callable[[int, dict[str, Any], Path], dict[str, Callable[[], dict[str, Any]]]]] = {
    "main": main_units,
    "merge": merging.units,
    "posterior": after.units,
    "scales": partial(sweeps.units, adapters="ab"),
    "merge4": partial(sweeps.units, adapters="abcd"),
    "features": features.units,
    "unlearning": removal.units,
    "extra": extra.units,
    "road": road.units,
    "left": left.units,
}
"""Part -> its units of one world."""
SCORED = ("main", "merge", "posterior")
"""Parts whose predictions are kept."""

if __name__ == "__main__":
    main(sys.argv[1:])
