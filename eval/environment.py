"""What an evaluation ran on and what it cost, for ``results.json``."""

import os
import platform
import sys
from importlib import metadata
from typing import Any

import psutil
import torch

__all__ = ["hardware", "peak_memory_bytes", "versions"]

_PACKAGES = ("variational-lora", "torch", "transformers", "peft", "datasets", "bitsandbytes", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, threads, memory, and accelerator if any."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": accelerator,
    }


def peak_memory_bytes() -> int:
    """Largest memory so far: of the accelerator where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
