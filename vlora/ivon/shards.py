"""Parameters that a process holds a part of: DTensors, as FSDP2 (``torch.distributed.fsdp.fully_shard``) makes them.

IVON is elementwise, so every process works on its own part, and nothing is sent but one number that tells whether all
gradients are finite. The noise of parts is in ``vlora.ivon.shard_noise``.
"""

import sys
from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlora.errors import TrainingError

__all__ = [
    "drop_gathered",
    "is_sharded",
    "local",
    "local_state",
    "lowest_of_ranks",
    "refuse_hidden",
    "refuse_replaced",
    "set_grad",
    "sum_of_ranks",
    "whole",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor; told by its attributes, as importing the class takes most of a second."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Any:
    """The part of a tensor that this process holds, sharing its memory; a plain tensor is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_state(state: dict[str, Any]) -> dict[str, Any]:
    """The parts of a parameter's state that this process holds; the dictionary itself if the state is whole."""
    if not is_sharded(state["mean"]):
        return state
    return {key: local(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered from all processes, which must all call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def set_grad(param: Tensor, value: Tensor) -> None:
    """Let ``value``, shaped like the local part of ``param``, be its gradient."""
    if not is_sharded(param):
        param.grad = value.to(param.dtype)
        return
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    local(param.grad).copy_(value)


def lowest_of_ranks(number: int, params: Iterable[Tensor]) -> int:
    """The smallest ``number`` of all processes that hold parts of ``params``; the number itself if they are whole."""
    for mesh in {param.device_mesh for param in params if is_sharded(param)}:  # pyright: ignore[reportAttributeAccessIssue]
        value = torch.tensor(number, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(value, dist.ReduceOp.MIN, group=mesh.get_group(dim))
        number = int(value)
    return number


def sum_of_ranks(numbers: Sequence[float], params: Iterable[Tensor]) -> list[float]:
    """Each number summed over the processes that hold parts of ``params``; the numbers if the parameters are whole."""
    for mesh in {param.device_mesh for param in params if is_sharded(param)}:  # pyright: ignore[reportAttributeAccessIssue]
        values = torch.tensor(numbers, dtype=torch.float64, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(values, dist.ReduceOp.SUM, group=mesh.get_group(dim))
        numbers = values.tolist()
    return list(numbers)


def drop_gathered(params: Sequence[Tensor]) -> None:
    """Make FSDP2 gather again, after parameters were written to.

    It keeps some gathered parameters after a forward pass that no backward pass followed, usually those of the root
    module, and would go on computing with what they held then.
    """
    if not any(is_sharded(param) for param in params):
        return
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule

    for module in list(_module_state_mapping):
        if isinstance(module, FSDPModule):
            module.reshard()


def refuse_hidden(param: Tensor) -> None:
    """Refuse a parameter that is not what the model computes with.

    Raises:
        TrainingError: For FSDP1's flat parameters and for parameters that DeepSpeed ZeRO-3 has partitioned.
    """
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise TrainingError(
            "IVON cannot draw into the flat parameters of FSDP1: use FSDP2 (torch.distributed.fsdp.fully_shard, or "
            "fsdp_version: 2 in the accelerate configuration), or DDP"
        )
    if hasattr(param, "ds_id"):
        raise TrainingError(
            "IVON cannot draw into the partitioned parameters of DeepSpeed ZeRO-3: use FSDP2 (fsdp_version: 2 in the "
            "accelerate configuration), or DDP"
        )


def refuse_replaced(groups: Iterable[dict[str, Any]], given: Container[Tensor]) -> None:
    """Refuse parameters that DeepSpeed has put in the place of the model's.

    ZeRO stages 1 and 2, and its bf16 and fp16 optimizers, exchange the parameters of every group for flat float32
    copies of their own. A draw in those would never reach the model, which computes with the parameters it had.

    Args:
        groups: Parameter groups.
        given: The parameters that the optimizer was made with.

    Raises:
        TrainingError: If a group holds a parameter that the optimizer was not given, and DeepSpeed is in use.
    """
    if "deepspeed" not in sys.modules:
        return  # FSDP2 exchanges parameters too, for the shards that the model then computes with
    params = (param for group in groups for param in group["params"])
    if any(param not in given and not is_sharded(param) for param in params):
        raise TrainingError(
            "IVON cannot draw into the flat copies that DeepSpeed (ZeRO-1, ZeRO-2, bf16, fp16) puts in the place of "
            "the model's parameters: use DDP, or FSDP2 (fsdp_version: 2 in the accelerate configuration)"
        )
