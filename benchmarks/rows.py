"""Reading data sets, writing the files of a run, and keeping a machine's paths out of results."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["read_rows", "without_paths", "write_rows"]


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
