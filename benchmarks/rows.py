"""Reading data sets, writing the files of a run and its record, and keeping a machine's paths out of results."""

import gzip
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from vlora.files import strict_json

__all__ = ["PACKAGES", "keep_and_tell", "keep_record", "read_rows", "without_paths", "write_rows"]

PACKAGES = ("variational-lora", "torch", "transformers", "peft")
"""Packages whose versions stand in a record."""


def without_paths(config: Any) -> Any:
    """The content with every path cut to its last part, so that results carry no machine's folders."""
    if isinstance(config, dict):
        return {key: without_paths(value) for key, value in config.items()}
    if isinstance(config, list):
        return [without_paths(value) for value in config]
    return Path(config).name if isinstance(config, str) and config.startswith("/") else config


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> str:
    """Write JSONL and return the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def keep_record(target: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Write what ``make`` returns with its time, versions and hardware, or nothing; None if the file exists."""
    if target.exists():
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    started, cpu = time.perf_counter(), time.process_time()
    record = make()
    record |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    record["versions"] = {package: metadata.version(package) for package in PACKAGES}
    record["hardware"] = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": 1}
    partial = target.with_suffix(".partial")
    partial.write_text(strict_json(record), encoding="utf-8")
    partial.rename(target)
    return record


def keep_and_tell(results: Path, part: str, name: str, make: Callable[[], dict[str, Any]]) -> None:
    """``keep_record`` under the folder of a part, with a line on what it took."""
    record = keep_record(results / part / f"{name}.json", make)
    if record is not None:
        print(f"{part}/{name}: {record['cpu_seconds']:.0f} s of CPU", flush=True)
