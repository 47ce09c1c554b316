"""The largest task at hand: sentiment of sentences and reviews, pooled, for runs that are long.

Training rows of ``sst2`` and of eleven ``fdu_*`` domains (not ``fdu_MR``, which shares sentences with ``sst2``), the
first 32 tokens of each. Test rows: the first 400 of ``sst2`` and 100 of each domain. Foreign are trec and subj.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.posterior_quality.tasks import (
    Rows,
    Task,
    encoded,
    foreign_rows,
    kept_features,
    load_task,
    ordered_rows,
)
from benchmarks.rows import read_rows

__all__ = ["DOMAINS", "cut", "load_by_name", "load_pool"]

DOMAINS = (
    "books", "camera_photo", "dvd", "electronics", "health_personal_care", "imdb", "kitchen_housewares", "music",
    "software", "sports_outdoors", "video",
)  # fmt: skip
TOKENS, HELD_OUT_ROWS, VALIDATION_ROWS = 32, 1000, 300


def load_pool(data: Path, cache: Path) -> Task:
    """Features of the whole pool, from the cache or computed."""
    num_classes, splits = kept_features(cache / "pool.safetensors", lambda: _compute(data))
    foreign = foreign_rows(("subj", "trec"), data, cache)
    validation = _first(splits["validation"], VALIDATION_ROWS)
    return Task("pool", num_classes, splits["train"], validation, splits["test"], foreign)


@lru_cache(maxsize=1)
def load_by_name(name: str, data: Path, work: Path) -> Task:
    """One of the tasks, or ``pool``; the last one stays in memory."""
    cache = work / "features"
    return load_pool(data, cache) if name == "pool" else load_task(name, data, cache)


def cut(task: Task, rows: int, steps: int) -> Task:
    """The same task with its first training rows only, for runs of ``steps`` steps."""
    return replace(task, train=_first(task.train, rows), steps=steps)


def _first(rows: Rows, count: int) -> Rows:
    return Rows(rows.hidden[:count], rows.mask[:count], rows.label[:count])


def _compute(data: Path) -> tuple[int, dict[str, Tensor]]:
    names = ("sst2", *(f"fdu_{domain}" for domain in DOMAINS))
    train = ordered_rows([row for name in names for row in _split(name, "train", data)])
    test = _split("sst2", "test", data)[:400]
    for name in names[1:]:
        test += _split(name, "test", data)[:100]
    splits = {"train": train[HELD_OUT_ROWS:], "validation": train[:HELD_OUT_ROWS], "test": test}
    return encoded(splits, TOKENS)


def _split(name: str, split: str, data: Path) -> list[dict[str, Any]]:
    return ordered_rows(read_rows(data / name / f"{split}.jsonl.gz"))
