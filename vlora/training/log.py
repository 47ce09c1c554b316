"""The record of a run, ``train_log.json``: what it saw, what it cost, with which settings."""

import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlora.ivon.low_precision import state_bytes
from vlora.training.prepare import Prepared

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["peak_memory_bytes", "train_log"]

_PACKAGES = ("variational-lora", "torch", "transformers", "peft", "accelerate", "datasets")


def train_log(
    run: Prepared, trainer: "Trainer", optimizer: dict[str, Any], *, started: float, resumed_from: Path | None
) -> dict[str, Any]:
    """Plain data about a finished run.

    Args:
        run: What was trained on.
        trainer: The Trainer after its run.
        optimizer: Resolved optimizer settings.
        started: ``time.perf_counter()`` at the start of this process's part of the run.
        resumed_from: Checkpoint that this part started from.
    """
    state = trainer.state
    history = [dict(entry) for entry in state.log_history]
    return {
        "format": 1,
        "loss": [entry for entry in history if "loss" in entry],
        "validation": [entry for entry in history if "eval_loss" in entry],
        "steps": state.global_step,
        "epochs": state.epoch,
        "seconds": round(time.perf_counter() - started, 3),
        "train_seconds": next((e["train_runtime"] for e in history if "train_runtime" in e), None),
        "resumed_from_step": int(resumed_from.name.split("-")[-1]) if resumed_from else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "parameters_trained": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "optimizer": optimizer,
        "optimizer_state_bytes": state_bytes(getattr(trainer.optimizer, "state", {}).values()),
        "scheduler": str(getattr(trainer.args.lr_scheduler_type, "value", trainer.args.lr_scheduler_type)),
        "data": _data(run) | {"tokens_seen": round(run.train.num_tokens * (state.epoch or 0))},
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "hardware": _hardware(),
    }


def peak_memory_bytes() -> int | None:
    """Largest memory of this process: allocated on the GPU if there is one, else resident; None if unknown."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # bytes on macOS, KiB elsewhere


def _data(run: Prepared) -> dict[str, Any]:
    """Counts of the training rows."""
    return {
        "num_examples": run.train.num_examples,
        "num_rows": len(run.train),
        "num_truncated": run.train.num_truncated,
        "num_tokens": run.train.num_tokens,
        "num_target_tokens": run.train.num_target_tokens,
        "num_validation_rows": len(run.validation) if run.validation is not None else 0,
    }


def _hardware() -> dict[str, Any]:
    """Where the run happened, without names of machines."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": platform.machine(), "gpu": gpu, "threads": torch.get_num_threads()}
