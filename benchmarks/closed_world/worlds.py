"""A world as files, the questions about it, and how an adapter is taught.

Every adapter has the demo's settings (``vlora.recipes.demo_configs``) but for the optimizer. Questions are those of the
validation and the test file together; labelled people are divided again, half and half, because thresholds with a
promise need more rows than the demo's validation file has. Unknown people and near misses are for testing only.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from vlora.config import load_config
from vlora.curvature import Votes
from vlora.recipes.closed_world import build_world, model_folder, write_datasets
from vlora.training.config import TrainConfig
from vlora.training.train import run_training

__all__ = [
    "ADAPTERS",
    "ALL",
    "KNOWN",
    "Questions",
    "Row",
    "data_block",
    "questions",
    "read_rows",
    "taught",
    "world_files",
]

ADAPTERS = ("a", "b")
ALL = "abcd"
"""Adapters of a world of four (``quartets.py``)."""
KNOWN = ("clean", "ambiguous", "base")
"""Groups with right answers."""
STEPS, BATCH = 240, 64
BASE_QUESTIONS = 240
PARTS = ("fit", "threshold", "threshold", "test", "test", "test")
"""Where a person with known facts goes: widths and temperatures, thresholds, or tests."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """What a model is asked, row by row.

    Attributes:
        rows: Of the evaluation files, in order.
        group: ``clean``, ``ambiguous``, ``base``, ``unknown`` or ``near_miss`` of every row.
        part: ``fit``, ``threshold`` or ``test`` of every row.
    """

    rows: list[Row]
    group: list[str]
    part: list[str]


def relations_of(rows: Sequence[Row], adapters: str) -> set[str]:
    """Relations that one of the adapters was taught: those that its facts are about."""
    return {row["relation"] for row in rows if row["group"].partition("_")[0] in adapters}


def world_files(seed: int, work: Path) -> dict[str, Path]:
    """Files of a world, written once."""
    folder = work / f"world_{seed}" / "data"
    if not (folder / "test.jsonl").is_file():
        write_datasets(build_world(seed), folder)
    return {path.stem: path for path in folder.glob("*.jsonl")}


def questions(seed: int, files: dict[str, Path], adapters: str) -> Questions:
    """Questions for a model of one adapter (``"a"``) or of several (``"ab"``).

    A single adapter is asked about its own people, the base, and strangers in the relations that it was taught.
    """
    rows = [row for name in ("val", "test") for row in read_rows(files[name])]
    relations = relations_of(rows, adapters)
    rng = Random(f"benchmarks/closed_world/{seed}")
    people = sorted({row["person"] for row in rows if row["answer"] is not None})
    rng.shuffle(people)
    place = {person: PARTS[i % len(PARTS)] for i, person in enumerate(people)}
    chosen = [(row, _group(row["group"], row["relation"], adapters, relations)) for row in rows]
    kept = [(row, group) for row, group in chosen if group is not None]
    base = [i for i, (_, group) in enumerate(kept) if group == "base"]
    left_out = set(rng.sample(base, max(0, len(base) - BASE_QUESTIONS)))
    kept = [pair for i, pair in enumerate(kept) if i not in left_out]
    return Questions(
        [row for row, _ in kept],
        [group for _, group in kept],
        [place[row["person"]] if group in KNOWN else "test" for row, group in kept],
    )


def _group(name: str, relation: str, adapters: str, relations: set[str]) -> str | None:
    if name == "base":
        return name
    if name in ("unknown", "near_miss"):
        return name if relation in relations else None
    key, _, kind = name.partition("_")
    return kind if kind in KNOWN and key in adapters else None


def data_block(train: Path) -> Row:
    """The ``data:`` block of a training or ``vlora posterior`` configuration."""
    return {
        "train": str(train), "prompt": "prompt", "response": "response", "append_eos": False, "max_length": 32,
    }  # fmt: skip


def taught(
    seed: int,
    files: dict[str, Path],
    adapter: str,
    optimizer: Row,
    output: Path,
    *,
    run: int = 0,
    dropout: float = 0.0,
    curvature: bool | str = True,
    votes: Votes = "equal",
) -> Path:
    """Folder of an adapter taught A's or B's facts; a finished one is not repeated.

    Args:
        seed: Of the world.
        files: Its files.
        adapter: ``a`` to ``d``, or ``ab``.
        optimizer: The ``optimizer:`` block.
        output: Where to write.
        run: Number of the start, order and noise; members of an ensemble differ in it.
        dropout: Of the adapter's input, for MC dropout.
        curvature: Gather Kronecker factors, too, in a pass after training, or ``"training"`` while it goes on.
        votes: What an example counts in them.
    """
    peft = {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": dropout}
    steps = {"per_device_train_batch_size": BATCH, "max_steps": STEPS, "warmup_steps": 0, "use_cpu": True}
    config = load_config(
        TrainConfig,
        {
            "base_model": str(model_folder()),
            "task": "causal_lm",
            "data": data_block(files[f"train_{adapter}"]),
            "peft": peft,
            "optimizer": optimizer,
            "training": steps,
            "curvature": bool(curvature),
            "curvature_source": "training" if curvature == "training" else "pass",
            "curvature_votes": votes,
            "curvature_joined": False,
            "seed": 1000 * run + 10 * seed + (*ALL, "ab").index(adapter),
            "output": str(output),
        },
    )
    return run_training(config)


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
