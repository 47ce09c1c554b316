"""Tasks whose adapters are merged, as features of a frozen encoder; rows, splits and heads as posterior_quality's.

The first five layers of MiniLM are frozen, so their output for a row is computed once and kept, in bfloat16.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_quality.tasks import BASE, Rows, kept_features, split_rows

FROZEN_LAYERS = 5
DOMAINS = (
    "fdu_books", "fdu_dvd", "fdu_electronics", "fdu_kitchen_housewares", "fdu_music", "fdu_software",
    "fdu_camera_photo", "fdu_health_personal_care", "fdu_imdb", "fdu_MR", "fdu_sports_outdoors", "fdu_video",
)  # fmt: skip
"""Twelve domains of one task, sentiment; merges of T adapters take the first T, the others are unseen."""
MIXED = ("sst2", "trec", "subj", *(name for name in DOMAINS if name != "fdu_MR"))
"""Tasks of different kinds, each with its own head; merges of T take the first T. ``fdu_MR`` shares texts with sst2."""
TOKENS = {"sst2": 32, "trec": 24, "subj": 32} | dict.fromkeys(DOMAINS, 48)
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 640, 300, 400


@dataclass(frozen=True)
class Task:
    """One task in three splits."""

    name: str
    num_classes: int
    train: Rows
    validation: Rows
    test: Rows


def load_task(name: str, data: Path, cache: Path) -> Task:
    """Features of a task, from the cache or computed."""
    num_classes, rows = kept_features(cache / f"{name}.safetensors", lambda: _compute(name, data))
    return Task(name, num_classes, **rows)


def head(rows: Rows, count: int) -> Rows:
    """The first rows of a split."""
    return Rows(rows.hidden[:count], rows.mask[:count], rows.label[:count])


def joined(parts: list[Rows]) -> Rows:
    """Rows of several tasks with one set of classes as one set, padded to the longest."""
    length = max(part.hidden.shape[1] for part in parts)

    def padded(tensor: Tensor) -> Tensor:
        out = torch.zeros((len(tensor), length, *tensor.shape[2:]), dtype=tensor.dtype)
        out[:, : tensor.shape[1]] = tensor
        return out

    return Rows(
        torch.cat([padded(part.hidden) for part in parts]),
        torch.cat([padded(part.mask) for part in parts]),
        torch.cat([part.label for part in parts]),
    )


def _compute(name: str, data: Path) -> tuple[int, dict[str, Tensor]]:
    """Number of classes, and ``<split>.<field of Rows>`` -> tensor."""
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model: Any = AutoModel.from_pretrained(BASE, dtype=torch.bfloat16).eval()
    model.encoder.layer = model.encoder.layer[:FROZEN_LAYERS]
    splits = split_rows(name, data)
    classes = sorted({row["label"] for rows in splits.values() for row in rows}, key=str)
    out: dict[str, Tensor] = {}
    for split, count in (("train", TRAIN_ROWS), ("validation", VALIDATION_ROWS), ("test", TEST_ROWS)):
        rows = splits[split][:count]
        texts = [row["text"] for row in rows]
        inputs = tokenizer(
            texts, truncation=True, max_length=TOKENS[name], padding="max_length", return_tensors="pt"
        )
        with torch.no_grad():
            hidden = [
                model(**{key: value[i : i + 50] for key, value in inputs.items()}).last_hidden_state
                for i in range(0, len(rows), 50)
            ]
        out[f"{split}.hidden"], out[f"{split}.mask"] = torch.cat(hidden), inputs["attention_mask"]
        out[f"{split}.label"] = torch.tensor([classes.index(row["label"]) for row in rows])
    return len(classes), out
