"""Three kinds of text that adapters are trained on, and stories, which the base model was trained on."""

import random
from pathlib import Path
from typing import Any

from benchmarks.rows import read_rows, write_rows

TEXTS = ("school", "wiki", "instructions")
"""What is merged: GSM8K problems with solutions, WikiText-2 paragraphs, Alpaca instructions with answers."""
STORIES = "stories"
TOKENS = 128
TRAIN_ROWS, VALIDATION_ROWS, TEST_ROWS = 800, 40, 60
_PARAGRAPH = 200  # characters; shorter lines of WikiText are titles
_SHUFFLE = 0


def prepare(data: Path, target: Path) -> dict[str, str]:
    """Write the rows of every split that is missing.

    Returns:
        ``train_<text>``, ``train_joint``, ``train_stories`` (for a prior only), ``validation`` and ``test`` -> file.
        Validation holds the merged texts, test the stories too; ``kind`` names the text.
    """
    files = {name: target / f"{name}.jsonl" for name in ("validation", "test", "train_joint")}
    files |= {f"train_{text}": target / f"train_{text}.jsonl" for text in (*TEXTS, STORIES)}
    if not all(path.exists() for path in files.values()):
        found = {text: _splits(text, data) for text in (*TEXTS, STORIES)}
        for text in found:
            write_rows(found[text]["train"], files[f"train_{text}"])
        write_rows([row for text in TEXTS for row in found[text]["train"]], files["train_joint"])
        write_rows([row for text in TEXTS for row in found[text]["validation"]], files["validation"])
        write_rows([row for text in found for row in found[text]["test"]], files["test"])
    return {name: str(path) for name, path in files.items()}


def _splits(text: str, data: Path) -> dict[str, list[dict[str, Any]]]:
    train, test = read_texts(text, data)
    if test is None:
        random.Random(_SHUFFLE).shuffle(train)
        train, test = train[:-TEST_ROWS], train[-TEST_ROWS:]
    parts = {
        "train": train[:TRAIN_ROWS],
        "validation": train[TRAIN_ROWS : TRAIN_ROWS + VALIDATION_ROWS],
        "test": test[:TEST_ROWS],
    }
    return {split: [{"text": row, "kind": text} for row in rows] for split, rows in parts.items()}


def read_texts(text: str, data: Path) -> tuple[list[str], list[str] | None]:
    """Training and test texts; None where the set has no split of its own."""
    if text == "school":
        splits = [read_rows(data / "gsm8k" / f"{split}.jsonl.gz") for split in ("train", "test")]
        train, test = ([f"{row['question']}\n{row['answer_text']}" for row in rows] for rows in splits)
        return train, test
    if text == "wiki":
        splits = [read_rows(data / "wikitext2" / f"{split}.jsonl.gz") for split in ("valid", "test")]
        train, test = ([t for row in rows if len(t := row["text"].strip()) > _PARAGRAPH] for rows in splits)
        return train, test
    if text == "instructions":
        rows = read_rows(data / "alpaca_demo" / "train.jsonl.gz")
        parts = (("instruction", "input", "output") for _ in rows)
        return [
            "\n".join(row[p] for p in names if row[p]) for row, names in zip(rows, parts, strict=True)
        ], None
    return [row["text"] for row in read_rows(data / "tinystories_1k" / "ascii.jsonl.gz")], None
