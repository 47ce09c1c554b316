"""Plain PEFT adapters as anybody makes them, and the configuration of a posterior for one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from vlora.config import load_config
from vlora.laplace import PosteriorConfig

REVIEWS = [{"text": f"{w} film {n}", "label": k} for n in range(12) for k, w in enumerate(("bad", "good"))]
FACTS = [{"question": f"colour of item {n} ?", "answer": ("red", "green")[n % 2]} for n in range(12)]


def plain_adapter(base: Path, folder: Path, *, classifier: bool, **lora: Any) -> PeftModel:
    """A random LoRA, saved by PEFT alone."""
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    settings = {"r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS" if classifier else "CAUSAL_LM"}
    settings["target_modules"] = ["query", "value", "dense"] if classifier else "all-linear"
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(**{**settings, **lora}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def make_posterior(tiny_bert, tiny_llama, tmp_path, write_rows) -> Callable[..., PosteriorConfig]:
    """Configuration for a fresh plain adapter; keyword arguments replace whole keys, strings override."""

    def make(task: str = "sequence_classification", *overrides: str, lora: Any = None, **keys: Any):
        classifier = task == "sequence_classification"
        base = tiny_bert if classifier else tiny_llama
        if "adapter" not in keys:
            plain_adapter(base, tmp_path / "adapter", classifier=classifier, **(lora or {}))
        data = {} if classifier else {"prompt": "{question} answer :", "response": "answer"}
        rows = write_rows(REVIEWS if classifier else FACTS, f"{task}.jsonl")
        values = {
            "adapter": str(tmp_path / "adapter"),
            "task": task,
            "data": {"train": rows, **data},
            "output": str(tmp_path / "out"),
            **keys,
        }
        return load_config(PosteriorConfig, values, overrides)

    return make
