"""Models on disk and files of questions for whole evaluations."""

import json
from pathlib import Path

import eval_tiny
import numpy as np
from transformers import AutoModelForCausalLM

from vlora.config import load_config
from vlora.eval.config import EvalConfig
from vlora.recipes.cli import app


def command(*arguments: object) -> int:
    """Exit status of ``vlora`` with these arguments."""
    try:
        app(args=[str(argument) for argument in arguments], prog_name="vlora")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def questions(count: int, seed: int, answered: bool = True) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "question": "Q " + " ".join(f"w{i}" for i in rng.integers(0, 40, rng.integers(2, 9))) + " A",
            "choices": ["red", "blue", "dark green"][: 2 + int(rng.integers(0, 2))],
            "answer": int(rng.integers(0, 2)) if answered else None,
            "kind": ["easy", "hard"][number % 2],
        }
        for number in range(count)
    ]


def build(folder: Path) -> Path:
    """A base Llama, two posteriors and a plain adapter on it, and files of questions."""
    base = eval_tiny.save_base(folder / "base", eval_tiny.llama())
    for name, seed in (("first", 1), ("second", 2)):
        model, posterior = eval_tiny.adapted(AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM", seed)
        posterior.save_pretrained(folder / name)
        if name == "second":
            model.save_pretrained(folder / "plain")
    write(folder / "test.jsonl", questions(24, 0))
    write(folder / "validation.jsonl", questions(12, 1))
    write(folder / "unknown.jsonl", questions(10, 2, answered=False))
    return folder


def config(world: Path, output: Path, **changes) -> EvalConfig:
    values = {
        "model": [str(world / "first"), {"path": str(world / "plain"), "name": "adamw"}, "base"],
        "base_model": str(world / "base"),
        "task": "multiple_choice",
        "data": {
            "test": str(world / "test.jsonl"),
            "validation": str(world / "validation.jsonl"),
            "ood": {"unknown": str(world / "unknown.jsonl")},
            "group": "kind",
        },
        "ensemble": False,
        "num_samples": 4,
        "num_bootstrap": 50,
        "output": str(output),
    }
    return load_config(EvalConfig, {**values, **changes})
