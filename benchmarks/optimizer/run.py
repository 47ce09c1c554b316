"""Cost of an optimizer step: time, peak memory, and its share of a whole training step.

    python -m benchmarks.optimizer.run [--threads 1] [--only time_lora ...] [--again]

Each unit is one child process and leaves one JSON file under ``results/``; a unit whose file exists is not repeated
unless ``--again`` says so. At the end the tables of the README are made anew (``table.py``). Linux, some 8 minutes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MEMORY = (
    "adamw_foreach", "adamw_fused", "ivon_opt", "vlora_reference", "vlora_foreach", "vlora_auto", "vlora_compiled",
)  # fmt: skip
UNITS: dict[str, list[str]] = {
    "time_lora": ["times", "lora"],
    "time_small": ["times", "small"],
    "time_single": ["times", "single"],
    **{
        f"memory_{case}_{name}": ["memory", case, name]
        for case in ("lora", "small", "single")
        for name in MEMORY
    },
    "minilm": ["minilm"],
}
PACKAGES = ("variational-lora", "torch", "transformers", "peft", "ivon-opt")


def main() -> None:
    """Run the units that have no result yet, one after the other, then make the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--only", nargs="+", choices=UNITS, help="these units only")
    parser.add_argument("--again", action="store_true", help="measure again what has a result")
    parser.add_argument("--unit", choices=UNITS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.unit:
        print(json.dumps(measured(args.unit, args.threads)))
        return
    for name in args.only or UNITS:
        path = HERE / "results" / f"{name}.json"
        if args.again or not path.exists():
            print(name, file=sys.stderr, flush=True)
            path.parent.mkdir(exist_ok=True)
            path.write_text(child(name, args.threads) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "benchmarks.optimizer.table"], check=True)


def child(name: str, threads: int) -> str:
    """Result of one unit, from a process of its own."""
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "benchmarks.optimizer.run", "--unit", name, "--threads", str(threads)]
    found = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}, check=True
    )
    return json.dumps(json.loads(found.stdout.splitlines()[-1]), indent=1)


def measured(name: str, threads: int) -> dict[str, Any]:
    """Output of one unit with the conditions of the measurement."""
    import torch

    from benchmarks.optimizer import measure

    torch.set_num_threads(threads)
    function, *arguments = UNITS[name]
    output = getattr(measure, function)(*arguments)
    return {
        "unit": name, "output": output, "threads": threads, "hardware": hardware(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }  # fmt: skip


def hardware() -> dict[str, Any]:
    """Processor, cores and load: how busy the machine was with other work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    load = round(os.getloadavg()[0], 1)
    return {"machine": platform.machine(), "cpu": model, "cores": os.cpu_count(), "load": load}


if __name__ == "__main__":
    main()
