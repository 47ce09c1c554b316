"""Answers of an unfinished evaluation, so that a killed run continues with the questions it had not answered.

Beside the output folder ``NAME`` lies ``NAME.work`` with one file a model, one line a question, appended and flushed to
disk a few questions at a time. Its name holds a hash of everything the answers depend on: files under other names
belong to other settings or versions and are left alone. A line that is damaged, or that a kill cut off, is counted, and
its question is answered again. A second file a model says what each few questions cost, written first, so that no
answer lacks its cost. Verdicts of a judge lie in the same folder unless the settings name another.
"""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vlora.errors import OutputError
from vlora.eval.generation.records import AnswerRecord, read_whole_answers, to_line
from vlora.files import ends_line

__all__ = ["AnswerStore"]

logger = logging.getLogger(__name__)

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
        """Answers of a model so far; damaged lines are left out and counted, and nothing is changed.

        Raises:
            OutputError: The file cannot be read.
        """
        file = self.file(name, key)
        try:
            found, damaged = read_whole_answers(file)
        except OSError as error:
            raise OutputError(f"cannot read {file}: {error.strerror}; move it away to begin anew") from error
        if damaged:
            logger.warning(
                "%s: %d damaged line(s) left out; their questions are answered again", file, damaged
            )
        return found

    def foreign(self, models: Mapping[str, str]) -> int:
        """Number of files with answers under other settings or of another version; left alone, with one line.

        Args:
            models: Name -> key of the models of this evaluation.
        """
        found = self._others(models)
        if found:
            logger.warning(
                "%s holds %d file(s) of answers under other settings or of another version (the first: %s); they are "
                "kept but not used, and can be deleted when no run is to continue with them",
                *(self.path, len(found), found[0].name),
            )
        return len(found)

    def _others(self, models: Mapping[str, str]) -> list[Path]:
        """Files with answers that are not this evaluation's."""
        own = {self.file(name, key).name for name, key in models.items()}
        return sorted(file for file in self.path.glob(f"*{_SUFFIX}") if file.name not in own)

    def costs(self, name: str, key: str) -> list[tuple[list[str], dict[str, list[float]]]]:
        """What the answers of a model cost so far: questions and cost of every chunk; damaged lines are counted."""
        found, damaged, file = [], 0, self._costs(name, key)
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        for line in filter(None, lines):
            try:
                row = json.loads(line)
                found.append((list(row["items"]), {step: list(cost) for step, cost in row["cost"].items()}))
            except (ValueError, KeyError, TypeError, AttributeError):
                damaged += 1
        if damaged:
            logger.warning("%s: %d damaged line(s) left out; what they cost is not counted", file, damaged)
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
                if not ends_line(file):
                    target.write("\n")  # what a kill cut off stays a line of its own
                target.write("".join(to_line(record) for record in records))
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            with suppress(OSError):
                self.path.rmdir()  # where it is empty: what was not there before is not there after
            raise OutputError(f"cannot write {file}: {error.strerror}; check the place of output") from error

    def remove(self, models: Mapping[str, str], verdicts: Path | None = None) -> None:
        """Delete what this evaluation wrote, and the folder unless something else lies in it.

        Args:
            models: Name -> key of the models of this evaluation.
            verdicts: File of its judge; kept while other unfinished answers lie here, which may need it.
        """
        for name, key in models.items():
            self.file(name, key).unlink(missing_ok=True)
            self._costs(name, key).unlink(missing_ok=True)
        if verdicts is not None and not self._others({}):
            verdicts.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
