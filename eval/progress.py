"""Finished models of an unfinished evaluation, so that a killed run continues where it stopped.

Beside the output folder ``NAME`` lies ``NAME.work`` with two files per finished model: its records and a few facts.
Their names hold a hash of everything the records depend on; the facts are written last and make the pair count.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlora.errors import DataError, OutputError
from vlora.eval.records import Record, read_records, write_records
from vlora.files import atomic_write

__all__ = ["WorkFolder", "content_key"]

_SUFFIXES = (".records.jsonl", ".facts.json")


def content_key(content: Any) -> str:
    """Hash of JSON-able content; equal content hashes equal on every machine."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class WorkFolder:
    """The ``.work`` folder of one output."""

    def __init__(self, output: str | Path) -> None:
        output = Path(output)
        self.path = output.with_name(output.name + ".work")

    def load(self, name: str, key: str) -> tuple[list[Record], dict[str, Any]] | None:
        """Records and facts of a finished model, or None when it has to be scored (again)."""
        records, facts = self._paths(name, key)
        try:
            known = json.loads(facts.read_text(encoding="utf-8"))
            rows = read_records(records)
        except (OSError, ValueError, DataError):
            return None
        return (rows, known) if len(rows) == known["num_records"] else None

    def save(self, name: str, key: str, records: Sequence[Record], facts: dict[str, Any]) -> None:
        """Keep a finished model.

        Raises:
            OutputError: The place cannot be written.
        """
        records_path, facts_path = self._paths(name, key)
        try:
            write_records(records_path, records)
            atomic_write(facts_path, json.dumps({**facts, "num_records": len(records)}))
        except OutputError:
            with suppress(OSError):
                self.path.rmdir()  # where it is empty: what was not there before is not there after
            raise

    def remove(self) -> None:
        """Delete what :meth:`save` wrote, and the folder unless something else lies in it."""
        if not self.path.is_dir():
            return
        for file in self.path.iterdir():
            if file.name.endswith(_SUFFIXES):
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def records_path(self, name: str, key: str) -> Path:
        """Where the records of a model lie."""
        return self._paths(name, key)[0]

    def _paths(self, name: str, key: str) -> tuple[Path, Path]:
        stem = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:60]}-{key[:16]}"
        return self.path / (stem + _SUFFIXES[0]), self.path / (stem + _SUFFIXES[1])
