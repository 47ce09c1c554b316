"""The whole of an adapter whose parameters are sharded over processes, for saving."""

from typing import Any

from torch import Tensor, nn

from vlora.ivon.shards import is_sharded, whole

__all__ = ["whole_adapter"]


def whole_adapter(model: nn.Module, adapter_name: str) -> dict[str, Tensor] | None:
    """State dict of a PEFT model in which the tensors of one adapter, and all trained ones, are gathered.

    Every process must call it. The rest of the base model stays sharded; PEFT does not save it.

    Args:
        model: PEFT model without wrappers, under FSDP2 or not.
        adapter_name: The adapter to gather.

    Returns:
        The state dict, for ``model.save_pretrained(state_dict=...)``; None if nothing is sharded.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    state: dict[str, Any] = model.state_dict()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: whole(tensor)
        if name in trained or {adapter_name, "modules_to_save"} & {*name.split(".")}
        else tensor
        for name, tensor in state.items()
    }
