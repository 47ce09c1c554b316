"""Which score of an answer knows that it is wrong, or about nobody? One JSON a world and setting.

    python -m benchmarks.generation.run train --work WORK [--seeds 0 1 2 3 4] [--settings word phrase]
    python -m benchmarks.generation.run main --work WORK [--seeds 0 1 2 3 4] [--settings word phrase]
    python -m benchmarks.generation.run main --work WORK --arms leading --settings word [--seeds 0 1 2 3 4]
    python -m benchmarks.generation.table

WORK keeps worlds, adapters and answers. A unit whose file exists under ``results/`` is not repeated, nor an adapter
that is trained; answers that were made are read again. ``main`` trains what ``train`` has not. ``score`` computes the
numbers of the units again from the answers that WORK keeps. ``--arms leading`` is the posterior of leading directions,
with units of its own under ``results/leading``; it has answers of one word only.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_world.worlds import Questions
from benchmarks.generation.leading import OPTIMIZERS, drawn_folder
from benchmarks.generation.scores import plain_information, score
from benchmarks.generation.worlds import ADAPTERS, SETTINGS, adapters, asked, task_of
from benchmarks.rows import keep_record
from vlora.config import load_config
from vlora.eval.costs import Spent
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.costs import answer_costs
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.generation.session import answer_all, prepare_session
from vlora.eval.generation.store import AnswerStore
from vlora.files import atomic_write, strict_json
from vlora.recipes.closed_world import model_folder

RESULTS = Path(__file__).parent / "results"
DRAWS, ANSWERS_PER_DRAW = 8, 8
ARMS = ("ivon", "adamw", "ensemble", *(f"leading_{name}" for name in OPTIMIZERS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["train", "main", "score"])
    parser.add_argument("--work", type=Path, required=True, help="folder for worlds, adapters, answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="worlds")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--arms", choices=["main", "leading"], default="main", help="which methods")
    args = parser.parse_args(arguments)
    leading = args.arms == "leading"
    if leading and args.settings != ["word"]:
        parser.error("--arms leading has answers of one word only: add --settings word")
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    for seed in args.seeds:
        for setting in args.settings:
            target = RESULTS / ("leading" if leading else "") / f"{setting}_{seed}.json"
            make = partial(unit, seed, setting, args.work, leading)
            if args.part == "train":
                for adapter in ADAPTERS:
                    adapters(seed, setting, adapter, args.work)
            elif args.part == "main":
                record = keep_record(target, make)
                took = "there" if record is None else f"{record['seconds']:.0f} s"
                print(f"{args.arms} {target.stem}: {took}", flush=True)
            elif target.exists():
                kept = json.loads(target.read_text(encoding="utf-8"))
                atomic_write(target, strict_json(kept | {"scores": make()["scores"]}))


def unit(seed: int, setting: str, work: Path, leading: bool = False) -> dict[str, Any]:
    """Scores of all methods for both adapters of a world, each about its own people; what the steps cost."""
    record: dict[str, Any] = {"world": seed, "setting": setting, "scores": {}, "cost": {}}
    for adapter in ADAPTERS:
        found, files = asked(seed, adapter, work)
        parts = [part for part in found.part if part != "test"]
        models = _leading if leading else _trained
        configured = models(seed, setting, adapter, work, found)
        for arm, (records, spent) in answered(setting, files, configured).items():
            plain = plain_information(records)
            numbers = score(AnswerTable(arm, records), parts) | ({"plain": plain} if plain else {})
            record["scores"].setdefault(arm, {})[adapter] = numbers
            record["cost"].setdefault(arm, {})[adapter] = answer_costs(records, spent)
    return record


def _trained(seed: int, setting: str, adapter: str, work: Path, _: Questions) -> dict[str, Any]:
    """Models and draws of the methods that are trained."""
    folders = adapters(seed, setting, adapter, work)
    return {
        "model": [{"path": str(path), "name": name} for name, path in folders.items()],
        "ensemble": [name for name in folders if name != "ivon"] if setting == "word" else False,
        "output": str(work / f"world_{seed}" / setting / f"answers_{adapter}"),
    }


def _leading(seed: int, setting: str, adapter: str, work: Path, found: Questions) -> dict[str, Any]:
    """The same of the posteriors over all tensors at once."""
    folders = {name: drawn_folder(seed, setting, adapter, name, work, found) for name in OPTIMIZERS}
    return {
        "model": [{"path": str(path), "name": f"leading_{name}"} for name, path in folders.items()],
        "covariance": "leading",
        "ensemble": False,
        "output": str(work / f"world_{seed}" / setting / f"answers_leading_{adapter}"),
    }


def answered(
    setting: str, files: dict[str, Path], configured: dict[str, Any]
) -> dict[str, tuple[list[AnswerRecord], dict[str, Spent]]]:
    """Answers of some methods to the questions of one adapter, as ``vlora eval`` makes them; what is there is kept.

    Returns:
        Records of every arm, the validation questions in the order of their file, and what their steps took.
    """
    config = {
        **configured,
        "kind": "generation",
        "base_model": str(model_folder()),
        "task": task_of(setting),
        "data": {name: str(path) for name, path in files.items()} | {"max_length": 32},
        "num_samples": DRAWS,
        "sampling": {"num_answers": ANSWERS_PER_DRAW},
        "judge": {"clusters_by": "text"},
        "p_true": None,  # the model's 350 words hold neither "True" nor "False"
        "batch_size": 64,
    }
    session = prepare_session(load_config(GenerationConfig, config))
    arms = [speaker for speaker in session.speakers if speaker.name in ARMS]  # not every member by itself
    return answer_all(replace(session, speakers=arms), AnswerStore(config["output"]))


if __name__ == "__main__":
    main(sys.argv[1:])
