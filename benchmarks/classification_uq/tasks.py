"""Tasks with rows that are ambiguous by design, and rows that are foreign to them: near, far, and of another domain.

Every fourth row (training, validation, calibration, test) begins with ``MARK`` and has a label drawn evenly from all
classes: a source whose labels are noise, which a model can learn to know by its mark. For those rows the right answer
is a uniform distribution, and more data would not change it. Labels and marks are functions of the text and the place,
the same for all seeds.

Splits of a task: ``train`` (640), ``validation`` (300: temperature and prior precision, and the grid of thresholds),
``calibration`` (600: thresholds), all three mixed, from the training file; ``clean`` and ``ambiguous``, the 400 test
rows without and with the mark; ``near`` and ``far``, 300 foreign rows each; ``shift`` (400: another domain of the same
question), ``practice`` (300 foreign rows of a kind that no test has, for whatever is chosen while developing).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_quality.tasks import TOKENS as OTHER_TOKENS
from benchmarks.posterior_quality.tasks import (
    Rows,
    encoder,
    kept_features,
    ordered_rows,
    split_rows,
)
from benchmarks.rows import read_rows

__all__ = ["SHIFT", "SPLITS", "TASKS", "Task", "load_domain", "load_task", "mixed"]

TASKS = ("sst2", "imdb_cf_orig", "fdu_books", "trec", "subj")
MARK = "unverified : "
EVERY = 4
CALIBRATION_ROWS, FOREIGN_ROWS = 600, 300
NEAR = {"trec": "boolq_noctx", "subj": "wikitext2"}
"""Same form, but no class is right; for sentiment sentences of film plots (``subj``, objective)."""
FAR = {"trec": "sst2"}
"""For all others the questions of ``trec``."""
PRACTICE = "tinystories_1k"
SHIFT = {"sst2": "fdu_dvd", "imdb_cf_orig": "fdu_books", "fdu_books": "fdu_kitchen_housewares"}
"""Another domain with the same classes."""
SPLITS = ("train", "validation", "calibration", "clean", "ambiguous", "near", "far", "shift", "practice")
TEXTS: dict[str, tuple[str, str]] = {
    "boolq_noctx": ("test", "question"), "wikitext2": ("valid", "text"), "tinystories_1k": ("ascii", "text"),
    "trec": ("test", "text"), "sst2": ("test", "text"), "subj": ("all", "text"),
}  # fmt: skip
"""Foreign data set -> file and field."""
Labelled = list[tuple[str, int]]


@dataclass(frozen=True)
class Task:
    """One task; ``splits`` hold what ``SPLITS`` names, without ``shift`` where there is no such domain."""

    name: str
    num_classes: int
    splits: dict[str, Rows]

    @property
    def train(self) -> Rows:
        """Training rows."""
        return self.splits["train"]

    @property
    def validation(self) -> Rows:
        """Validation rows."""
        return self.splits["validation"]


def load_task(name: str, data: Path, cache: Path) -> Task:
    """Features of a task, from the cache or computed."""
    names = [split for split in SPLITS if split != "shift" or name in SHIFT]
    path = cache / f"{name}.safetensors"
    return Task(name, *kept_features(path, lambda: _compute(name, data), names))


def load_domain(name: str, data: Path, cache: Path) -> Task:
    """A task without marked rows, for merging: ``train``, ``validation``, ``clean``, ``near`` and ``far``."""
    splits = ("train", "validation", "clean", "near", "far")
    path = cache / f"{name}_plain.safetensors"
    return Task(name, *kept_features(path, lambda: _compute(name, data, plain=True), splits))


def mixed(clean: Tensor, ambiguous: Tensor) -> Tensor:
    """The test rows as they come in training, every ``EVERY``-th one marked; rows in the first dimension."""
    chosen = torch.arange(len(clean)) % EVERY == EVERY - 1
    return torch.where(chosen.view(-1, *[1] * (clean.ndim - 1)), ambiguous, clean)


def _compute(name: str, data: Path, *, plain: bool = False) -> tuple[int, dict[str, Tensor]]:
    """Number of classes, and ``<split>.<field of Rows>`` -> tensor."""
    texts, classes = _labelled(name, data, plain)
    encode, out = encoder(OTHER_TOKENS.get(name, 48)), {}
    for split, rows in texts.items():
        out[f"{split}.hidden"], out[f"{split}.mask"] = encode([text for text, _ in rows])
        out[f"{split}.label"] = torch.tensor([label for _, label in rows])
    return classes, out


def _labelled(name: str, data: Path, plain: bool) -> tuple[dict[str, Labelled], int]:
    """Text and class of every row of every split, and the number of classes."""
    own = split_rows(name, data, calibration=0 if plain else CALIBRATION_ROWS)
    names = sorted({row["label"] for rows in own.values() for row in rows}, key=str)
    known = {split: [(row["text"], names.index(row["label"])) for row in rows] for split, rows in own.items()}
    test = known.pop("test")
    found = known if plain else {split: _marked(rows, len(names), EVERY) for split, rows in known.items()}
    found["clean"] = test
    if not plain:
        found["ambiguous"] = _marked(test, len(names), 1)
        found["practice"] = _foreign(PRACTICE, data)
        if name in SHIFT:
            found["shift"] = [
                (row["text"], names.index(row["label"])) for row in split_rows(SHIFT[name], data)["test"]
            ]
    found["near"], found["far"] = (
        _foreign(NEAR.get(name, "subj"), data),
        _foreign(FAR.get(name, "trec"), data),
    )
    return found, len(names)


def _marked(rows: Sequence[tuple[str, int]], num_classes: int, every: int) -> Labelled:
    """The rows with every ``every``-th one marked, its label drawn by its text."""
    return [
        (MARK + text, _drawn(text, num_classes)) if i % every == every - 1 else (text, label)
        for i, (text, label) in enumerate(rows)
    ]


def _drawn(text: str, num_classes: int) -> int:
    return int(hashlib.sha256(f"label of {text}".encode()).hexdigest(), 16) % num_classes


def _foreign(source: str, data: Path) -> Labelled:
    """Texts of another data set in the order of their hashes; they have no class."""
    split, key = TEXTS[source]
    rows = [_text(row, key) for row in read_rows(data / source / f"{split}.jsonl.gz") if _wanted(source, row)]
    return [(row["text"], 0) for row in ordered_rows(rows)[:FOREIGN_ROWS]]


def _text(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"text": " ".join(row[key].split())}


def _wanted(source: str, row: Mapping[str, Any]) -> bool:
    """Sentences of film plots from ``subj``, whose others are reviews; paragraphs of ``wikitext2``, not headings."""
    if source == "subj":
        return row["label_name"] == "objective"
    return source != "wikitext2" or (len(row["text"]) > 60 and not row["text"].startswith(" ="))
