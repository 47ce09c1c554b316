"""The ``peft:`` block: any PEFT configuration class, checked key by key, put on a base model."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlora.config import suggest_key
from vlora.data.config import Task
from vlora.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

__all__ = ["add_adapter", "peft_config"]

_TASK_TYPES = {
    "sequence_classification": "SEQ_CLS",
    "causal_lm": "CAUSAL_LM",
    "multiple_choice": "CAUSAL_LM",
}
_BY_TASK = ("multitask_prompt_tuning", "poly")
_OWNED = (
    "peft_type",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "peft_version",
    "auto_mapping",
)


def peft_config(settings: Mapping[str, Any], *, task: Task, model_type: str) -> "PeftConfig":
    """PEFT configuration from plain settings.

    ``target_modules`` left out means PEFT's choice for this model type, and all linear layers where PEFT has none.

    Args:
        settings: ``type`` (``lora``, ``adalora``, ``ia3``, …; default lora) and arguments of that class.
        task: Fixes PEFT's ``task_type``.
        model_type: ``config.model_type`` of the base model.

    Raises:
        ConfigError: unknown type, unknown argument, or a value that PEFT refuses.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    arguments = dict(settings)
    name = str(arguments.pop("type", "lora"))
    known_types = {str(kind.value).lower(): kind for kind in PeftType if kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    if name.lower() not in known_types:
        raise ConfigError(f"peft.type: {suggest_key(name, sorted(known_types))}")
    if name.lower() in _BY_TASK:
        raise ConfigError(
            f"peft.type {name} wants the task of every row (task_ids), which vlora train does not give; use "
            "transformers.Trainer with vlora.IVON and a task_ids column"
        )
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[known_types[name.lower()]]
    _check_arguments(arguments, cls)
    if arguments.get("target_modules") is None and _needs_targets(cls, model_type):
        arguments["target_modules"] = "all-linear"
    try:
        return cls(task_type=_TASK_TYPES[task], **arguments)
    except (TypeError, ValueError) as error:
        raise _refused(error) from error


def add_adapter(
    base: "PreTrainedModel", config: "PeftConfig", dtype: torch.dtype = torch.float32
) -> "PeftModel":
    """Wrap a base model; the adapter has ``dtype`` whatever the base is, and modules trained whole are float32.

    Raises:
        ConfigError: the configuration does not fit this model (for example no such target modules).
    """
    from peft import PeftModel, get_peft_model

    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _refused(error) from error
    assert isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # before the optimizer is built, so nothing is rebound later
            parameter.data = parameter.data.to(torch.float32 if "modules_to_save" in name else dtype)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("peft: this configuration leaves nothing to train on this model")
    return model


def _refused(error: Exception) -> ConfigError:
    """PEFT's objection in one line."""
    what = "a value is of the wrong type: " if isinstance(error, TypeError) else ""
    return ConfigError(f"peft: {what}{' '.join(str(error).split())[:300]}")


def _check_arguments(arguments: Mapping[str, Any], cls: type) -> None:
    """Name a misspelt argument with its neighbours."""
    known = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in _OWNED]
    for key in arguments:
        if key in _OWNED:
            raise ConfigError(f"peft.{key} is set by vlora; leave it out")
        if key not in known:
            raise ConfigError(f"in peft: {suggest_key(key, ['type', *known])}")


def _needs_targets(cls: type, model_type: str) -> bool:
    """Whether this method wants target modules and PEFT has no choice of its own for the model type."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    return (
        any(field.name == "target_modules" for field in dataclasses.fields(cls)) and model_type not in KNOWN
    )
