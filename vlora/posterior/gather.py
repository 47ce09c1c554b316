"""The whole of an adapter whose parameters are sharded over processes, for saving."""

from typing import Any

from torch import Tensor, nn

from vlora.ivon.shards import is_sharded, whole

__all__ = ["whole_adapter"]


def whole_adapter(model: nn.Module, adapter_name: str) -> dict[str, Tensor] | None:
    """State dict of a PEFT model in which the tensors of one adapter are gathered from all processes.

    Every process must call it. The base model stays sharded; PEFT does not save it.

    Args:
        model: PEFT model without wrappers, under FSDP2 or not.
        adapter_name: The adapter to gather.

    Returns:
        The state dict, for ``model.save_pretrained(state_dict=...)``; None if nothing is sharded.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    from peft import get_peft_model_state_dict

    state: dict[str, Any] = model.state_dict()
    saved = get_peft_model_state_dict(model, state_dict=state, adapter_name=adapter_name)
    wanted = {id(tensor) for tensor in saved.values()}
    return {name: whole(tensor) if id(tensor) in wanted else tensor for name, tensor in state.items()}
