"""The layers that a LoRA adapter changes and whose curvature can be measured."""

from typing import TYPE_CHECKING

from torch import nn

from vlora.errors import ConfigError, IncompatibleAdaptersError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

__all__ = ["adapted_layers"]


def adapted_layers(model: "PeftModel", adapter_name: str = "default") -> dict[str, "LoraLayer"]:
    """The layers whose curvature can be measured, by name; call it before a long run to fail early.

    Args:
        model: a PEFT model.
        adapter_name: its active LoRA adapter.

    Raises:
        ConfigError: the adapter is unknown, inactive, disabled, or has no LoRA layer.
        IncompatibleAdaptersError: an adapted layer is not a linear layer of torch or bitsandbytes.
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
        if not isinstance(base, nn.Linear):
            raise IncompatibleAdaptersError(
                f"{name} adapts a {type(base).__name__}, expected a linear layer (torch, or bitsandbytes"
                " 8-bit or 4-bit): curvature needs an adapter whose target_modules leave it out"
            )
        if layer.disable_adapters:  # type: ignore[attr-defined]
            raise ConfigError(f"adapter {adapter_name!r} is disabled: leave model.disable_adapter() first")
        layers[name] = layer
    if not layers:
        raise ConfigError(f"adapter {adapter_name!r} has no LoRA layer; curvature is measured for LoRA only")
    return layers
