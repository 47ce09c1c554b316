"""Worlds of ``vlora demo`` with answers of one word or of a phrase, how adapters are taught, and who is asked what.

``word``: every answer is one token, as in the demo. ``phrase``: answers end with an end-of-sequence token, and those of
one of the adapter's two relations come in one of four wordings at random, equal once articles and punctuation are
dropped: there the likelihood of a text is not that of its meaning.

The division of the rows (fit, threshold, test, by person) is that of ``benchmarks/closed_world``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.closed_world.worlds import ADAPTERS, Questions, Row, questions, read_rows, world_files
from vlora.config import load_config
from vlora.recipes.closed_world import build_world
from vlora.recipes.demo_configs import train_config
from vlora.training.config import TrainConfig
from vlora.training.train import run_training

__all__ = ["ADAPTERS", "SETTINGS", "WORDINGS", "adapters", "asked", "task_of", "trainings"]

SETTINGS = ("word", "phrase")
WORDINGS = ("{}", "the {}", "a {} .", "The {} .")
"""Equal once normalised (case, punctuation, articles)."""
MEMBERS = 4
STEPS = 240


def trainings(seed: int, setting: str, adapter: str, work: Path) -> Path:
    """Training file of an adapter."""
    files = world_files(seed, work)
    if setting == "word":
        return files[f"train_{adapter}"]
    path = work / f"world_{seed}" / "phrase" / f"train_{adapter}.jsonl"
    if not path.is_file():
        rng, free = Random(f"benchmarks/generation/{seed}/{adapter}"), _free_values(seed, adapter)
        rows = [_worded(row, rng) if row["response"] in free else row for row in read_rows(files[path.stem])]
        _write(rows, path)
    return path


def _free_values(seed: int, adapter: str) -> set[str]:
    """Values of the relation that is answered in free wording: the second of the adapter's two."""
    world = build_world(seed)
    taught = world.a if adapter == "a" else world.b
    return {value for fact in taught.facts if fact.relation == taught.relations[1] for value in fact.values}


def _worded(row: Row, rng: Random) -> Row:
    return {**row, "response": rng.choice(WORDINGS).format(row["response"])}


def adapters(seed: int, setting: str, adapter: str, work: Path) -> dict[str, Path]:
    """Folders of the adapters that a setting compares, by name; one that is trained is not trained again.

    Those of ``word`` are trained, and lie, as those of ``benchmarks/closed_world``, so WORK may be shared with it. An
    ensemble takes four trainings and is part of ``word`` only.
    """
    found = {"ivon": taught(seed, setting, adapter, "ivon", work)}
    for run in range(MEMBERS if setting == "word" else 1):
        found[f"adamw_{run}" if run else "adamw"] = taught(seed, setting, adapter, "adamw", work, run)
    return found


def taught(seed: int, setting: str, adapter: str, optimizer: str, work: Path, run: int = 0) -> Path:
    """Folder of one adapter with the settings of the demo.

    Args:
        seed: Of the world.
        setting: ``word`` or ``phrase``.
        adapter: ``a`` or ``b``.
        optimizer: ``ivon`` or ``adamw``.
        work: Where worlds and adapters are kept.
        run: Number of the start, order and noise; members of an ensemble differ in it.
    """
    folder = work / f"world_{seed}" / (f"{optimizer}_{run}" if setting == "word" else f"phrase_{optimizer}")
    if (folder / adapter / "adapter_config.json").is_file():
        return folder / adapter
    data = {f"train_{adapter}": trainings(seed, setting, adapter, work)}
    plain = train_config(folder, data, adapter, optimizer, seed=1000 * run + 10 * seed, steps=STEPS)
    plain["data"]["append_eos"] = setting == "phrase"
    more = {"curvature": False, "output": str(folder / adapter)}
    return run_training(load_config(TrainConfig, plain | more))


def asked(seed: int, adapter: str, work: Path) -> tuple[Questions, dict[str, Path]]:
    """Questions to one adapter, and files of those to test on (``test``) and of the held-out ones (``validation``)."""
    found = questions(seed, world_files(seed, work), adapter)
    files = {}
    for name, parts in (("test", ("test",)), ("validation", ("fit", "threshold"))):
        files[name] = work / f"world_{seed}" / "asked" / f"{adapter}_{name}.jsonl"
        _write([row for row, part in _rows(found) if part in parts], files[name])
    return found, files


def _rows(found: Questions) -> list[tuple[Row, str]]:
    """Rows under the benchmark's group names, and the part of each."""
    named = [
        {"prompt": row["prompt"], "response": row["response"], "group": group}
        for row, group in zip(found.rows, found.group, strict=True)
    ]
    return list(zip(named, found.part, strict=True))


def task_of(setting: str) -> str:
    """Task file of a setting."""
    return "closed_world" if setting == "word" else str(Path(__file__).with_name("phrases.yaml"))


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
