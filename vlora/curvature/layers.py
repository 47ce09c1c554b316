"""The layers whose curvature can be measured: those that a LoRA adapter changes, or linear layers of a whole model."""

import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from vlora.errors import ConfigError, IncompatibleAdaptersError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

__all__ = ["adapted_layers", "layer_sizes", "linear_layers", "measured_layers"]

_KINDS = "linear layer (torch, bitsandbytes 8-bit or 4-bit, or Conv1D of transformers)"


def is_linear(layer: Any) -> bool:
    """Whether y = W x (+ b) on the last axis: ``nn.Linear`` and its kin, and ``Conv1D``, which stores W transposed."""
    return isinstance(layer, nn.Linear) or _is_conv1d(layer)


def layer_sizes(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, whichever way round it stores its weight."""
    if _is_conv1d(layer):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


def _is_conv1d(layer: Any) -> bool:
    """``transformers.pytorch_utils.Conv1D``, by name, so that transformers need not be imported."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nx")


def adapted_layers(model: "PeftModel", adapter_name: str = "default") -> dict[str, "LoraLayer"]:
    """The layers whose curvature can be measured, by name; call it before a long run to fail early.

    Args:
        model: a PEFT model.
        adapter_name: its active LoRA adapter.

    Raises:
        ConfigError: the adapter is unknown, inactive, disabled, or has no LoRA layer.
        IncompatibleAdaptersError: an adapted layer is not a linear layer of torch or bitsandbytes, or a ``Conv1D``.
    """
    if adapter_name not in model.active_adapters:
        raise ConfigError(
            f"adapter {adapter_name!r} is not active (active: {', '.join(model.active_adapters)}; loaded: "
            f"{', '.join(model.peft_config)}): call model.set_adapter({adapter_name!r}) first"
        )
    from peft.tuners.lora import LoraLayer

    layers: dict[str, LoraLayer] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter_name not in {*layer.lora_A, *layer.lora_embedding_A}:
            continue
        base = layer.get_base_layer()
        if not is_linear(base):
            raise IncompatibleAdaptersError(
                f"{name} adapts a {type(base).__name__}, expected a {_KINDS}: curvature needs an adapter whose "
                "target_modules leave it out"
            )
        if layer.disable_adapters:  # type: ignore[attr-defined]
            raise ConfigError(f"adapter {adapter_name!r} is disabled: leave model.disable_adapter() first")
        layers[name] = layer
    if not layers:
        raise ConfigError(f"adapter {adapter_name!r} has no LoRA layer; curvature is measured for LoRA only")
    return layers


def linear_layers(model: nn.Module, pattern: str | None = None) -> dict[str, nn.Module]:
    """The linear layers of a model without an adapter, by name.

    Args:
        model: any model; its linear layers may be torch's, bitsandbytes' or ``Conv1D``.
        pattern: regular expression that is searched in the names; None takes all linear layers but the one that
            predicts tokens, whose Gram would have the size of the vocabulary.

    Raises:
        ConfigError: the pattern is no regular expression or matches no linear layer.
        IncompatibleAdaptersError: it matches a layer that has a weight matrix but is not linear.
    """
    if pattern is None:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        found = {n: m for n, m in model.named_modules() if is_linear(m) and m is not output}
        if not found:
            raise ConfigError(f"{type(model).__name__} has no linear layer besides its output layer")
        return found
    try:
        chosen = {name: layer for name, layer in model.named_modules() if re.search(pattern, name)}
    except re.error as error:
        raise ConfigError(f"layers: {pattern!r} is not a regular expression: {error}") from None
    found = {name: layer for name, layer in chosen.items() if is_linear(layer)}
    for name, layer in chosen.items():
        weight: Any = getattr(layer, "weight", None)
        if (
            name not in found
            and not isinstance(layer, nn.Embedding)
            and weight is not None
            and weight.ndim == 2
        ):
            raise IncompatibleAdaptersError(
                f"layers: {pattern!r} matches {name}, a {type(layer).__name__}, expected a {_KINDS}"
            )
    if not found:
        names = [name for name, layer in model.named_modules() if is_linear(layer)]
        raise ConfigError(
            f"layers: {pattern!r} matches none of {len(names)} linear layers (first {', '.join(names[:1])}); correct it"
        )
    return found


def measured_layers(
    model: nn.Module, adapter_name: str = "default", layers: str | None = None
) -> dict[str, tuple[nn.Module, Any]]:
    """Name -> the module that is watched, and the linear layer inside it that has the sizes.

    Args:
        model: a PEFT model, whose adapted layers are meant, or any other model.
        adapter_name: of a PEFT model, its active LoRA adapter.
        layers: of another model, as ``pattern`` of :func:`linear_layers`.

    Raises:
        ConfigError: see :func:`adapted_layers` and :func:`linear_layers`; or ``layers`` with an adapter.
        IncompatibleAdaptersError: a layer is not linear.
    """
    if not hasattr(model, "peft_config"):
        return {name: (layer, layer) for name, layer in linear_layers(model, layers).items()}
    if layers is not None:
        raise ConfigError(
            "layers is for models without an adapter; of a PEFT model the adapted layers are measured"
        )
    found = adapted_layers(cast("PeftModel", model), adapter_name)
    return {name: (cast(nn.Module, layer), layer.get_base_layer()) for name, layer in found.items()}
