"""The ``training:`` block: ``transformers.TrainingArguments`` with the defaults that suit short adapter runs."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlora.errors import ConfigError
from vlora.training.config import TrainConfig
from vlora.training.processes import launched_processes

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["OWNED", "planned_steps", "training_arguments"]

_OPTIMIZER = "the optimizer block"
_ABOVE_ZERO = (
    "num_train_epochs",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)
OWNED = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.eps",
    "optim": _OPTIMIZER,
    "optim_args": _OPTIMIZER,
    "optim_target_modules": _OPTIMIZER,
    "resume_from_checkpoint": "resume",
    "remove_unused_columns": "the data block",
    "label_names": "the data block",
    "load_best_model_at_end": "validation in vlora eval (a posterior is not the best of its checkpoints)",
    "push_to_hub": "Posterior.push_to_hub after training",
    "do_train": "vlora train",
    "do_eval": "data.validation",
    "do_predict": "vlora eval",
}
"""Arguments that have another home in the configuration: argument -> that home."""


def training_arguments(config: TrainConfig, work: Path) -> "TrainingArguments":
    """Arguments for the Trainer of a run, checked.

    Raises:
        ConfigError: an unknown argument, one that vlora owns, or a value that transformers refuses.
    """
    from transformers import TrainingArguments

    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key in config.training:
        if key in OWNED:
            raise ConfigError(f"training.{key} has its place elsewhere: use {OWNED[key]}")
        if key not in known:
            free = [name for name in known if name not in OWNED]
            raise ConfigError(f"in training: {_nearest(key, free)}")
    values = {**_defaults(config), **config.training}
    if config.optimizer.name == "ivon" and config.optimizer.hess_approx != "price":
        values["max_grad_norm"] = 0.0  # it clips by itself
    for key, value in values.items():
        if key.endswith("_strategy") and value is False:  # YAML reads an unquoted "no" as false
            values[key] = "no"
    _check_numbers(values)
    try:
        return TrainingArguments(output_dir=str(work), seed=config.seed, data_seed=config.seed, **values)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"training: {' '.join(str(error).split())[:300]}") from error


def planned_steps(args: "TrainingArguments", num_rows: int) -> int:
    """Optimizer steps that Trainer will take on so many rows, as it counts them itself."""
    if args.max_steps > 0:
        return args.max_steps
    batch = args.per_device_train_batch_size * max(1, args.world_size) * max(1, args.n_gpu)
    batches = num_rows // batch if args.dataloader_drop_last else math.ceil(num_rows / batch)
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return max(1, math.ceil(args.num_train_epochs * per_epoch))


def _defaults(config: TrainConfig) -> dict[str, Any]:
    """Defaults that differ from transformers' own, each for a reason."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "lr_scheduler_type": "cosine",  # every released IVON recipe decays
        "warmup_steps": 0.06,  # a share of the steps; without it some short runs never leave chance
        # by reparameterisation IVON bounds each entry by clip_radius; clipping would shrink its estimate of h too
        "max_grad_norm": 1.0 if config.optimizer.name == "adamw" else 0.0,
        "eval_strategy": "epoch" if config.data.validation is not None else "no",
        "logging_steps": 0.02,  # fractions of the run, so that short and long runs have useful curves
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a loss that is not finite must end the run, not be smoothed over
        "save_strategy": "steps",
        "save_steps": 0.1,
        "save_total_limit": 1,
        "report_to": "none",
        "prediction_loss_only": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "log_level": "error",  # of transformers; what matters to a user is in our own log
        "remove_unused_columns": False,
        "label_names": ["labels"],
        # Without it, Trainer lets every process of a launch train alone where there is no accelerator.
        "use_cpu": launched_processes() > 1 and not torch.accelerator.is_available(),
        "disable_tqdm": True,  # our own bar goes to stderr and leaves stdout to results
    }
    if config.data.validation is None and config.training.get("eval_strategy") not in (None, False, "no"):
        raise ConfigError("training.eval_strategy needs data.validation; add it or leave the strategy out")
    return values


def _check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse what Trainer would divide by, or loop over, much later."""
    for key in _ABOVE_ZERO:
        value = values.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"training.{key} must be a number above 0, got {value!r}")
    steps = values.get("max_steps", -1)
    if not isinstance(steps, int) or (steps < 1 and steps != -1):
        raise ConfigError(
            f"training.max_steps must be a whole number of 1 or more, or -1 for none, got {steps!r}"
        )


def _nearest(key: str, known: list[str]) -> str:
    """Words for an unknown argument: the closest one only, as there are a hundred."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key {key!r}; {hint}keys here are those of transformers.TrainingArguments"
