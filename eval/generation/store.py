"""Answers of an unfinished evaluation, so that a killed run continues with the questions it had not answered.

Beside the output folder ``NAME`` lies ``NAME.work`` with one file a model, one line a question, appended and flushed to
disk a few questions at a time. Its name holds a hash of everything the answers depend on; a line that a kill cut off is
dropped. A second file a model says what each few questions cost, written first, so that no answer lacks its cost.
Verdicts of a judge lie in the same folder unless the settings name another.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vlora.errors import DataError, OutputError
from vlora.eval.generation.records import AnswerRecord, read_answers, to_line
from vlora.files import atomic_write

__all__ = ["AnswerStore"]

_SUFFIX = ".answers.jsonl"
_COSTS = ".costs.jsonl"


class AnswerStore:
    """The ``.work`` folder of one output."""

    def __init__(self, output: str | Path) -> None:
        output = Path(output)
        self.path = output.with_name(output.name + ".work")

    def file(self, name: str, key: str) -> Path:
        """Where the answers of a model lie."""
        return self.path / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:60]}-{key[:16]}{_SUFFIX}"

    def load(self, name: str, key: str) -> list[AnswerRecord]:
        """Answers of a model so far; what a kill left half-written is cut off the file.

        Raises:
            OutputError: The file cannot be mended.
        """
        file = self.file(name, key)
        try:
            found = list(read_answers(file, cut=True))
        except (DataError, OSError):
            return []
        text = "".join(to_line(record) for record in found)
        if file.read_bytes() != text.encode():
            atomic_write(file, text)
        return found

    def costs(self, name: str, key: str) -> list[tuple[list[str], dict[str, list[float]]]]:
        """What the answers of a model cost so far: questions and cost of every chunk; a line cut off is left out."""
        found, file = [], self._costs(name, key)
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                row = json.loads(line)
                found.append((list(row["items"]), {step: list(cost) for step, cost in row["cost"].items()}))
        return found

    def _costs(self, name: str, key: str) -> Path:
        return self.file(name, key).with_name(self.file(name, key).name.removesuffix(_SUFFIX) + _COSTS)

    def append(
        self, name: str, key: str, records: Sequence[AnswerRecord], cost: Mapping[str, Sequence[float]]
    ) -> None:
        """Keep some more answers of a model, and what they cost together.

        Raises:
            OutputError: The place cannot be written.
        """
        file = self.file(name, key)
        spent = json.dumps({"items": [record.item for record in records], "cost": cost})
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self._costs(name, key), "a", encoding="utf-8") as target:
                target.write(f"\n{spent}\n")  # a line that was cut off before ends here
            with open(file, "a", encoding="utf-8") as target:
                target.write("".join(to_line(record) for record in records))
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()  # where it is empty: what was not there before is not there after
            raise OutputError(f"cannot write {file}: {error.strerror}; check the place of output") from error

    def remove(self) -> None:
        """Delete what this evaluation wrote, and the folder unless something else lies in it."""
        if not self.path.is_dir():
            return
        for file in self.path.iterdir():
            if file.name.endswith((_SUFFIX, _COSTS)) or file.name.startswith("verdicts-"):
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()
