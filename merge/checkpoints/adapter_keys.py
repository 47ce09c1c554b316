"""Which tensor of a checkpoint an adapter's module is, and which way round it lies there."""

from collections.abc import Mapping
from typing import Any

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.folders import is_tied, tied_partner
from vlora.merge.checkpoints.headers import TensorEntry
from vlora.posterior.lora_layout import LoraKeys

__all__ = ["base_key", "is_conv1d", "is_transposed", "plain_name"]

_PREFIX = "base_model.model."
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")


def plain_name(key: str) -> str:
    """Name in the base model of a tensor that PEFT saved whole."""
    name = key.removeprefix(_PREFIX)
    for wrapper in (".base_layer", ".modules_to_save.default", ".modules_to_save", ".original_module"):
        name = name.replace(f"{wrapper}.", ".")
    return name


def base_key(name: str, tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> str | None:
    """Key in the checkpoint of a tensor of the live model.

    A checkpoint may lack the outer name of the model (``transformer.``) or have one more; a tied output layer is the
    embedding. None if there is no such tensor, or no single one.
    """
    if name in tensors:
        return name
    inner = name.partition(".")[2]
    if inner in tensors:
        return inner
    ends = [key for key in tensors if key.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    return tied_partner(name, tensors) if is_tied(config) else None


def is_conv1d(module: str, config: Mapping[str, Any]) -> bool:
    """Whether a layer of one of transformers' ``Conv1D`` models is a ``Conv1D``, by its name.

    Args:
        module: Name of the layer.
        config: ``config.json`` of the model.
    """
    known = config.get("model_type") in _CONV1D_MODELS
    return known and module.rpartition(".")[2] in _CONV1D_LAYERS


def is_transposed(
    keys: LoraKeys, shape: tuple[int, ...], update: tuple[int, int], config: Mapping[str, Any], flag: bool
) -> bool:
    """Whether the checkpoint stores (inputs, outputs): embeddings and Conv1D.

    Args:
        keys: The adapted module.
        shape: Of the stored weight.
        update: (outputs, inputs) of the adapter's s B A.
        config: ``config.json`` of the base.
        flag: ``fan_in_fan_out`` of the adapter; decides on square weights of models that are not known to use Conv1D.

    Raises:
        CheckpointError: The shapes do not fit either way.
    """
    outputs, inputs = update
    fits, fits_transposed = shape == (outputs, inputs), shape == (inputs, outputs)
    if keys.embedding and fits_transposed:
        return True
    if fits and fits_transposed:
        return is_conv1d(keys.module, config) if config.get("model_type") in _CONV1D_MODELS else flag
    if fits or fits_transposed:
        return fits_transposed
    raise CheckpointError(
        f"{keys.module} has the shape {shape} in the base, the adapter updates {outputs} x {inputs}; is it the base "
        "that the adapter was trained on?"
    )
