"""Small learnable tasks and a ready configuration for each."""

from collections.abc import Callable
from typing import Any

import pytest

from vlora.config import load_config
from vlora.training import TrainConfig

COLOURS = ["red", "green", "blue"]
FACTS = [{"question": f"colour of item {n} ?", "answer": COLOURS[n // 2 % 3]} for n in range(24)]
QUIZ = [{"question": r["question"], "choices": COLOURS, "answer": COLOURS.index(r["answer"])} for r in FACTS]
REVIEWS = [
    {"text": f"{w} film {n}", "label": label} for n in range(12) for w, label in (("good", 1), ("bad", 0))
]

SHORT = {"max_steps": 6, "per_device_train_batch_size": 8}


@pytest.fixture
def make_config(tiny_llama, tiny_bert, tmp_path, write_rows) -> Callable[..., TrainConfig]:
    """Configuration of a short run of one task; keyword arguments replace whole keys, strings override."""

    def make(task: str = "causal_lm", *overrides: str, **keys: Any) -> TrainConfig:
        rows, data = {
            "causal_lm": (FACTS, {"prompt": "{question} answer :", "response": "answer"}),
            "multiple_choice": (QUIZ, {"prompt": "{question} answer :"}),
            "sequence_classification": (REVIEWS, {}),
        }[task]
        base = tiny_bert if task == "sequence_classification" else tiny_llama
        source = write_rows(rows, f"{task}.jsonl")
        values = {
            "base_model": str(base),
            "task": task,
            "data": {"train": source, **data},
            "peft": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1},
            "training": dict(SHORT),
            "output": str(tmp_path / "out"),
            **keys,
        }
        return load_config(TrainConfig, values, overrides)

    return make
