r"""Scores by content: what a model said, kept under what it depends on, so that nothing is scored twice.

A store is a folder with one file a model, ``<key>.jsonl``. The key is a hash of everything that all its scores depend
on: weights of the base model, number format, adapter and posterior, task and templates. The first line says the format
and what the key was made of; every further line is one finished batch,

    {"draws": ["mean", "0+"], "items": [hash, ...], "layout": [...], "scores": [...], "seconds": 0.2, "tokens": 812}

with one row of scores for every item and draw (``scores[item][draw]``), and of every item its length in tokens. A draw
is named by its noise and sign, an item by a hash of its content. A killed run has lost at most the batch that was being
written: a line that was cut off is dropped and counted, and its batch is scored again, alone. More draws later find the
earlier ones.

Only JSON; one program writes to a store at a time, any number may read.
"""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlora.errors import OutputError
from vlora.eval.costs import Batch

__all__ = ["FORMAT", "ScoreFile", "ScoreStore", "content_key"]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files that this vlora writes, and the only one it reads."""
ASIDE = ".aside"
"""Ending of a file that could not be read and was renamed before another took its place."""


def content_key(content: Any) -> str:
    """Hash of JSON-able content; equal content hashes equal on every machine."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class ScoreStore:
    """A folder of scores."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)

    def open(self, content: Any, *, names: Mapping[str, str] | None = None) -> "ScoreFile":
        """The scores of one model.

        Args:
            content: Everything that its scores depend on besides draw and item, JSON-able.
            names: Item hash -> name for people, for messages.
        """
        return ScoreFile(self.path / f"{content_key([FORMAT, content])[:32]}.jsonl", content, names or {})

    def foreign(self) -> int:
        """Number of files in the folder that another version wrote or that are damaged in their first line.

        They are left alone, with one line.
        """
        found = [path for path in sorted(self.path.glob("*.jsonl")) if _format_of(path) != FORMAT]
        if found:
            logger.warning(
                "%s holds %d file(s) that another version wrote or whose first line is damaged (the first: %s); they "
                "are kept but not read, and their items are scored again",
                self.path,
                len(found),
                found[0].name,
            )
        return len(found)


class ScoreFile:
    """Scores of one model, read whole and appended to batch by batch.

    Attributes:
        scores: Draw -> item -> scores.
        layouts: Item -> ``prompt``, its length in tokens, and ``lengths``, those of its choices.
        damaged: Lines that could not be read.
        seconds: Time that went into what is there.
        tokens: Tokens that went into it.
        batches: Draws, items, seconds and tokens of every finished batch.
        names: Item hash -> name for people.
    """

    def __init__(self, path: Path, content: Any, names: Mapping[str, str]) -> None:
        self.path, self.names = path, dict(names)
        self.scores: dict[str, dict[str, Any]] = {}
        self.layouts: dict[str, dict[str, Any]] = {}
        self.damaged, self.seconds, self.tokens = 0, 0.0, 0.0
        self.batches: list[Batch] = []
        self._header = {"format": FORMAT, "content": content}
        self._synced = -math.inf
        self._end = 0  # bytes up to the last whole line
        if path.is_file():
            self._read()

    def append(
        self,
        draws: Sequence[str],
        items: Sequence[str],
        scores: Sequence[Any],
        *,
        layout: Sequence[Any],
        seconds: float,
        tokens: float,
    ) -> None:
        """Keep a finished batch: one row of scores an item, in it one entry a draw, and one layout an item.

        Raises:
            OutputError: The place cannot be written.
        """
        line = {"draws": list(draws), "items": list(items), "layout": list(layout), "scores": list(scores)}
        line |= {"seconds": round(seconds, 4), "tokens": round(tokens)}
        begun = bool(self._end)
        try:
            if not begun:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._set_aside()
                begun = True
            self._write(line)
        except OSError as error:
            reason = error.strerror or error
            if not self._end:
                with suppress(OSError):  # what was not there before is not there after
                    if begun:
                        self.path.unlink(missing_ok=True)
                    self.path.parent.rmdir()
            raise OutputError(
                f"cannot write {self.path}: {reason}; free some space or name another place"
            ) from error
        self._take(line)

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line; the first time, a file is begun or what was cut off is removed."""
        text = json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"
        if not self._end:
            text = json.dumps(self._header, ensure_ascii=False, default=str) + "\n" + text
        with open(self.path, "r+b" if self._end else "wb") as file:
            file.seek(self._end)
            file.truncate()
            file.write(text.encode())
            file.flush()
            if time.monotonic() > self._synced + 1:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        self._end += len(text.encode())

    def _set_aside(self) -> None:
        """Rename a file that is there and could not be read; a header that was cut off holds nothing to keep."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        if b"\n" not in content:
            return
        number = 1
        while (kept := self.path.with_name(f"{self.path.name}.{number}{ASIDE}")).exists():
            number += 1
        self.path.rename(kept)
        logger.warning(
            "%s is of another version or its first line is damaged; kept as %s", self.path, kept.name
        )

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        if not lines or _format_of(self.path) != FORMAT:
            return  # nothing, a header cut off, or not ours: begun anew
        self._end = len(lines[0])
        for number, line in enumerate(lines[1:]):
            if _readable(line):
                self._take(json.loads(line))
            else:
                self.damaged += 1
                if number == len(lines) - 2:
                    break  # cut off: the next batch takes its place
            self._end += len(line)
        if self.damaged:
            logger.warning(
                "%s: %d damaged line(s) left out; their items are scored again", self.path, self.damaged
            )

    def _take(self, line: Mapping[str, Any]) -> None:
        for item, layout, row in zip(line["items"], line["layout"], line["scores"], strict=True):
            self.layouts[item] = layout
            for draw, value in zip(line["draws"], row, strict=True):
                self.scores.setdefault(draw, {})[item] = value
        self.seconds += line["seconds"]
        self.tokens += line["tokens"]
        self.batches.append((line["draws"], line["items"], line["seconds"], line["tokens"]))


def _readable(line: bytes) -> bool:
    """Whether a line is whole and has the keys and sizes of a batch."""
    try:
        values = json.loads(line)
        items, draws = len(values["items"]), len(values["draws"])
        sizes = {len(values["layout"]), len(values["scores"])}
        numbers = {type(values["seconds"]), type(values["tokens"])} <= {int, float}
        return (
            numbers
            and line.endswith(b"\n")
            and sizes == {items}
            and {len(row) for row in values["scores"]} <= {draws}
        )
    except (ValueError, KeyError, TypeError):
        return False


def _format_of(path: Path) -> Any:
    """Format that a file names in its first line; None where that cannot be read."""
    with open(path, "rb") as file:
        try:
            return json.loads(file.readline())["format"]
        except (ValueError, KeyError, TypeError):
            return None
