"""Answers of an unfinished evaluation, so that a killed run continues with the questions it had not answered.

Beside the output folder ``NAME`` lies ``NAME.work`` with one file a model, one line a question, appended and flushed to
disk a few questions at a time. Its name holds a hash of everything the answers depend on; a line that a kill cut off is
dropped. Verdicts of a judge lie in the same folder unless the settings name another.
"""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlora.errors import DataError, OutputError
from vlora.eval.generation.records import AnswerRecord, read_answers, to_line
from vlora.files import atomic_write

__all__ = ["AnswerStore"]

_SUFFIX = ".answers.jsonl"


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

    def append(self, name: str, key: str, records: Sequence[AnswerRecord]) -> None:
        """Keep some more answers of a model.

        Raises:
            OutputError: The place cannot be written.
        """
        file = self.file(name, key)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
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
            if file.name.endswith(_SUFFIX) or file.name.startswith("verdicts-"):
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()
