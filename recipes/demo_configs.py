"""The demo as configurations: exactly what ``vlora train``, ``merge`` and ``eval`` are given, nothing more."""

from pathlib import Path
from typing import Any

from vlora.recipes.closed_world import model_folder

__all__ = ["DETECT", "MERGES", "eval_config", "merge_config", "train_config"]

MERGES = {
    "mean_ivon": ("linear", "ivon"),
    "sum_ivon": ("task_arithmetic", "ivon"),
    "matched_ivon": ("gradient_matching", "ivon"),
    "sum_adamw": ("task_arithmetic", "adamw"),
    "matched_adamw": ("gradient_matching", "adamw"),
}
"""Name of a merged adapter -> method and optimizer of the adapters that go in."""

_A, _B = ["a_clean", "a_ambiguous"], ["b_clean", "b_ambiguous"]
DETECT = {
    "unknown people vs all that was taught": {"positive": ["unknown"], "negative": [*_A, *_B, "base"]},
    "unknown people vs ambiguous facts": {
        "positive": ["unknown"],
        "negative": ["a_ambiguous", "b_ambiguous"],
    },
    "unknown people vs A's facts": {"positive": ["unknown"], "negative": _A},
    "near-miss names vs all that was taught": {"positive": ["near_miss"], "negative": [*_A, *_B, "base"]},
}
"""What uncertainty is asked to tell apart, for every model alike."""

_OPTIMIZERS = {
    # Learning rates of lowest NLL on worlds that only benchmarks/closed_world/ tunes on; the rest are defaults.
    "ivon": {"name": "ivon", "lr": 3e-3},
    "adamw": {"name": "adamw", "lr": 5e-3},
}
_PEFT = {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def train_config(
    out: Path, data: dict[str, Path], adapter: str, optimizer: str, *, seed: int, steps: int
) -> dict[str, Any]:
    """Settings that teach one adapter the facts of ``a`` or ``b``, alike for both optimizers but the optimizer."""
    return {
        "base_model": str(model_folder()),
        "task": "causal_lm",
        "data": {
            "train": str(data[f"train_{adapter}"]),
            "prompt": "prompt",
            "response": "response",
            "append_eos": False,
            "max_length": 32,
        },
        "peft": _PEFT,
        "optimizer": _OPTIMIZERS[optimizer],
        "training": {
            "per_device_train_batch_size": 64,
            "max_steps": steps,
            "warmup_steps": 0,
            "use_cpu": True,
        },  # fmt: skip
        "curvature": True,
        "seed": seed + (0 if adapter == "a" else 1),  # different starts: see docs/gotchas.md on a shared A
        "output": str(out / f"{adapter}_{optimizer}"),
    }


def merge_config(out: Path, name: str) -> dict[str, Any]:
    """Settings that merge the two adapters of one optimizer."""
    method, optimizer = MERGES[name]
    return {
        "method": method,
        "base_model": str(model_folder()),
        "adapters": [
            {"path": str(out / f"{adapter}_{optimizer}"), "name": adapter} for adapter in ("a", "b")
        ],
        "rank": "lossless",
        "output": str(out / name),
    }


def eval_config(out: Path, data: dict[str, Path], *, num_samples: int) -> dict[str, Any]:
    """Settings that ask every model about every group of people."""
    adapters = ["a_ivon", "b_ivon", "a_adamw", "b_adamw", *MERGES]
    return {
        "model": [
            {"path": "base", "name": "base"},
            *({"path": str(out / name), "name": name} for name in adapters),
        ],
        "base_model": str(model_folder()),
        "task": "multiple_choice",
        "data": {
            "test": str(data["test"]),
            "validation": str(data["val"]),
            "prompt": "prompt",
            "choices": "choices",
            "answer": "answer",
            "group": "group",
            "label_probs": "answer_probs",
            "max_length": 32,
        },
        "ensemble": False,  # adapters that were taught different people; what joins them here is the merge
        "num_samples": num_samples,
        "detect": DETECT,
        "output": str(out / "report"),
    }
