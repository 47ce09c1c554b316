"""Several processes of one run, as ``accelerate launch`` and ``torchrun`` start them: the first decides and writes.

What every process must agree on (which checkpoint to go on from, what a folder holds) is found by the first
process and sent to the others. On one process everything here just calls its function.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from vlora.errors import ConfigError, VloraError

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["launched_processes", "on_first_process", "refuse_unsupported", "world_size"]

T = TypeVar("T")


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched_processes() -> int:
    """Processes that a launcher (``accelerate launch``, ``torchrun``) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_first_process(function: Callable[[], T]) -> T:
    """Call a function on the first process only, and give its result, or its error, to all of them.

    Args:
        function: Called without arguments; what it returns must be picklable.

    Raises:
        VloraError: On every process, what the function raised on the first.
    """
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = function()
        except VloraError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def refuse_unsupported(args: "TrainingArguments") -> None:
    """Refuse launches other than DDP.

    Args:
        args: Arguments of the Trainer.

    Raises:
        ConfigError: Under DeepSpeed or FSDP, or when the processes do not form one run.
    """
    if launched_processes() > 1 and args.world_size == 1:
        raise ConfigError(
            f"{launched_processes()} processes were launched but each would train alone: set training.use_cpu=true on "
            "CPUs, and leave training.use_cpu out on other devices"
        )
    if args.deepspeed or _switched_on("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "vlora train does not run under DeepSpeed, whose ZeRO stages hide the parameters that draws are written "
            "to: launch without it (DDP, as adapters are small)"
        )
    if args.fsdp or _switched_on("ACCELERATE_USE_FSDP"):
        raise ConfigError(
            "vlora train does not run under FSDP: launch without it (DDP, as adapters are small), or use vlora.IVON "
            "with FSDP2 in a loop of your own"
        )


def _switched_on(variable: str) -> bool:
    """Whether accelerate set one of its switches."""
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes", "y", "on")
