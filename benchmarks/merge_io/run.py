"""What a merge costs: whole checkpoints against a plain copy, mergekit and PEFT; adapters module by module.

    python -m benchmarks.merge_io.run [--folder DIR] [--mergekit PROGRAM] [--only round_0 ...] [--again]

Generates three bf16 checkpoints of 1.1 B parameters (6.6 GB) in a temporary folder and deletes them; ``--checkpoints``
names a folder that keeps them for another run. Whole checkpoints are measured in rounds, one JSON file under
``results/`` each; in a round every competitor has a process of its own and is measured once, in an order that moves on
by one from round to round. Other units have a file each. What has a file is not measured again unless ``--again`` says
so. ``--mergekit`` names the ``mergekit-yaml`` program of an environment of its own. Linux.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHECKPOINTS = ("linear", "task_arithmetic", "ties")
ROUNDS, WITH_MERGEKIT = 7, (1, 3, 5)
COMPETITORS = [
    ["copy", "2"],
    ["vlora", "linear"],
    ["copy", "3"],
    ["vlora", "task_arithmetic"],
    ["vlora", "ties"],
]
OTHERS = [["mergekit", "linear"], ["mergekit", "task_arithmetic"]]


def _round(number: int) -> list[list[str]]:
    """Competitors of a round; who is first moves on, so that a slow minute and what is left behind hit all."""
    everyone = COMPETITORS + (OTHERS if number in WITH_MERGEKIT else [])
    first = number % len(everyone)
    return everyone[first:] + everyone[:first]


UNITS: dict[str, list[list[str]]] = {
    **{f"round_{number}": _round(number) for number in range(ROUNDS)},
    "mergekit_ties": [["mergekit", "ties"]],  # takes longer than all others together
    **{f"phases_{method}": [["phases", method]] for method in CHECKPOINTS},
    "tiles": [["vlora", "linear", str(2**entries)] for entries in (16, 18, 19, 20)],
    "into_base": [["vlora_into"], ["peft_into"]],
    "module_linear": [["linear_family", "linear", "keep"], ["peft_module", "linear"]],
    "module_peft_svd": [["peft_module", "svd"]],
    "module_sum": [["linear_family", "task_arithmetic", "lossless"], ["peft_module", "cat"]],
    "module_gradient_matching": [
        ["linear_family", "gradient_matching", "keep"], ["linear_family", "gradient_matching", "lossless"],
    ],
    "module_short_grams": [
        ["linear_family", "gradient_matching, 64", "keep"], ["linear_family", "gradient_matching, 64", "lossless"],
    ],
    "module_others": [
        ["linear_family", "gradient_matching, separable", "keep"], ["linear_family", "regmean", "keep"],
        ["linear_family", "fisher", "keep"],
    ],
    "module_mats": [
        ["linear_family", "mats", "keep", "4", size] for size in ("512", "1024", "2048")
    ],
}  # fmt: skip
TURNS = dict.fromkeys(["module_linear", "module_sum", "into_base", "tiles"], 3)
TURNS |= dict.fromkeys(["module_gradient_matching", "module_short_grams", "module_others"], 5)
PACKAGES = ("variational-lora", "torch", "transformers", "peft", "safetensors", "numpy")


def main() -> None:
    """Run the units that have no result yet, then make the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the checkpoints are generated (needs 9 GB)")
    parser.add_argument("--checkpoints", type=Path, help="made there if missing, and kept")
    parser.add_argument("--layers", type=int, default=22, help="of the checkpoints, for a rehearsal")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--mergekit", help="mergekit-yaml of an environment of its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=UNITS, help="these units only")
    parser.add_argument("--again", action="store_true", help="measure again what has a result")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.child, args.folder, args.threads, args.mergekit)))
        return
    wanted = [name for name in args.only or UNITS if args.again or not _path(name, args).exists()]
    if not args.mergekit:
        wanted = [name for name in wanted if not name.startswith("mergekit")]
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = args.checkpoints or Path(temporary)
        for name in wanted:
            if not name.startswith("module"):
                _prepare(folder, args.layers)
            write(name, folder, args)
    if args.results == HERE / "results":
        subprocess.run([sys.executable, "-m", "benchmarks.merge_io.table"], check=True)


def write(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Measure one unit and write its file."""
    commands = [c for c in UNITS[name] if args.mergekit or c[0] != "mergekit"]
    rounds = []
    for number in range(TURNS.get(name, 1)):
        print(f"{name}, turn {number + 1}", file=sys.stderr, flush=True)
        order = commands if number % 2 == 0 else commands[::-1]
        rounds.append({" ".join(command): child(command, folder, args) for command in order})
    record = {
        "unit": name, "rounds": rounds, "threads": args.threads, "layers": args.layers, "hardware": hardware(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }  # fmt: skip
    _path(name, args).parent.mkdir(exist_ok=True)
    _path(name, args).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def child(command: list[str], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Result of one measurement, from a process of its own."""
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    line = [
        sys.executable,
        "-m",
        "benchmarks.merge_io.run",
        "--folder",
        str(folder),
        "--threads",
        str(args.threads),
    ]
    line += ["--mergekit", args.mergekit] if args.mergekit else []
    found = subprocess.run(
        [*line, "--child", *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads},
        check=True,
    )
    return json.loads(found.stdout.splitlines()[-1])


def measured(command: list[str], folder: Path, threads: int, program: str | None) -> dict[str, Any]:
    """Carry out one measurement in this process."""
    from benchmarks.merge_io import measure

    kind, *rest = command
    before = {} if "module" in kind or "family" in kind else measure.warmed(folder)
    return {**_measured(kind, rest, folder, threads, program), **before}


def _measured(kind: str, rest: list[str], folder: Path, threads: int, program: str | None) -> dict[str, Any]:
    from benchmarks.merge_io import measure

    if kind == "copy":
        return measure.copy(folder, threads, int(rest[0]))
    if kind in ("vlora", "phases"):
        return getattr(measure, kind)(folder, rest[0], threads, *rest[1:])
    if kind == "mergekit":
        return measure.mergekit(folder, str(program), rest[0], threads)
    if kind in ("vlora_into", "peft_into"):
        return getattr(measure, kind)(folder, threads)
    return getattr(measure, kind)(*rest)


def hardware() -> dict[str, Any]:
    """Processor, cores and load: how busy the machine was with other work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    load = round(os.getloadavg()[0], 1)
    return {"machine": platform.machine(), "cpu": model, "cores": os.cpu_count(), "load": load}


def _prepare(folder: Path, layers: int) -> None:
    """Generate the checkpoints and the adapter once."""
    if not (folder / "adapter").exists():
        from benchmarks.merge_io.generate import write_adapter, write_checkpoints

        print("generating checkpoints", file=sys.stderr, flush=True)
        write_checkpoints(folder, layers=layers)
        write_adapter(folder / "adapter", layers=layers)


def _path(name: str, args: argparse.Namespace) -> Path:
    return args.results / f"{name}.json"


if __name__ == "__main__":
    main()
