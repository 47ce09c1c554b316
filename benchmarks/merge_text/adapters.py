"""The adapters of a WORK folder: trained by ``vlora train``'s function when first asked for, Grams in a pass after."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.merge_text.texts import TEXTS, TOKENS

RANK, BATCH, GRAM_ROWS = 8, 8, 400
LR = 1e-3
"""The package's default when these runs were made; today's is 1e-2 at this width and length."""


def adapter(
    text: str,
    seed: int,
    files: Mapping[str, str],
    base: Path,
    work: Path,
    votes: str = "equal",
    joined: bool = False,
) -> Path:
    """Folder of the adapter of one text, or of ``joint``; with Grams for merging unless joint.

    Args:
        text: Kind of text, or ``joint``.
        seed: Number of the set.
        files: Of the texts.
        base: The base model.
        work: Where adapters are kept.
        votes: What a text counts in the Grams.
        joined: Whether its tokens are added up before they are squared.
    """
    from vlora.config import load_config
    from vlora.posterior import Posterior
    from vlora.training import TrainConfig
    from vlora.training.train import run_training

    place = work / f"{text}_{seed}"
    if not place.exists():
        run_training(load_config(TrainConfig, settings(text, seed, files, base, place)))
    if text == "joint":
        return place
    suffix = ("" if votes == "equal" else f"_{votes}") + ("_joined" if joined else "")
    found = work / f"{text}_{seed}{suffix}"
    if not (found / "curvature.safetensors").exists():
        grams = measured(place, batches(files[f"train_{text}"], base), base, votes, joined)
        posterior = replace(Posterior.from_pretrained(place), curvature=grams)
        posterior.save_pretrained(found, overwrite=True)
    return found


def measured(
    place: Path, rows: Iterator[dict[str, Any]], base: Path, votes: Any, joined: bool
) -> dict[str, Any]:
    """Grams of an adapter on rows."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from vlora.curvature import collect_curvature

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place)
    settings = {"votes": votes, "joined": joined, "progress": False}
    return collect_curvature(model, rows, activations=True, **settings)


def settings(text: str, seed: int, files: Mapping[str, str], base: Path, place: Path) -> dict[str, Any]:
    """Configuration of a training run: IVON as it comes but for the rate, 100 steps a text, another start of A each."""
    return {
        "base_model": str(base),
        "task": "causal_lm",
        "data": {"train": files[f"train_{text}"], "text": "text", "max_length": TOKENS},
        "peft": {"type": "lora", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": BATCH, "max_grad_norm": 0},
        "optimizer": {"name": "ivon", "lr": LR},
        "seed": 100 * seed + (*TEXTS, "joint").index(text),
        "output": str(place),
    }


def batches(path: str, base: Path) -> Iterator[dict[str, Any]]:
    """The first training texts as the adapter saw them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    lines = Path(path).read_text(encoding="utf-8").splitlines()[:GRAM_ROWS]
    texts = [json.loads(line)["text"] for line in lines]
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[start : start + BATCH],
            truncation=True,
            max_length=TOKENS,
            padding=True,
            return_tensors="pt",
        )
        yield {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
