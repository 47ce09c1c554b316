"""What a format weighs: bytes of the model, and the peak memory of a process that trains it.

    python -m benchmarks.low_precision.memory CONFIG.json

trains the configuration of ``vlora train`` in this process and prints one JSON line. A process is started for each
format, because memory that was once asked for is seldom given back. Linux only.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["measure", "measure_apart"]


def measure_apart(config: dict[str, Any], place: Path) -> dict[str, int]:
    """``measure`` in a process of its own.

    Args:
        config: Of ``vlora train``.
        place: File for the configuration.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(config))
    command = [sys.executable, "-m", "benchmarks.low_precision.memory", str(place)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def measure(config: dict[str, Any]) -> dict[str, int]:
    """Train, and tell memory in bytes.

    Returns:
        ``model_bytes``, of all parameters and buffers, adapter and head included; ``peak_rss_bytes``, the largest
        resident memory of the process from loading the model to saving the adapter, and ``start_rss_bytes``, what
        Python and the libraries held before.
    """
    from vlora.config import load_config
    from vlora.training import TrainConfig
    from vlora.training.prepare import prepare
    from vlora.training.train import run_training

    for module in ("peft", "bitsandbytes", "transformers.trainer", "vlora.training.callbacks"):
        importlib.import_module(module)
    loaded = load_config(TrainConfig, config)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    start = resident("VmRSS")
    run_training(loaded)
    peak = resident("VmHWM")
    model = prepare(loaded).model
    tensors = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"model_bytes": size, "peak_rss_bytes": peak, "start_rss_bytes": start}


def resident(entry: str) -> int:
    """``VmRSS``, the resident memory of this process now, or ``VmHWM``, its peak; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(entry)).split()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))
