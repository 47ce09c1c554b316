"""The unfinished output: a hidden folder beside the final one, with a lock against a second run and a journal.

    .NAME.merging/           shards at their full size, and journal.jsonl
    .NAME.merging.lock       held (flock) while a run works; the system releases it when the process dies

The first line of the journal says which plan it belongs to and which start of the machine; every other line names a
tensor that is written, with the findings of its rule. A run with the same plan goes on from there. After a crash of the
machine itself, when written data may not have reached the disk, it starts anew.
"""

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlora.errors import OutputError
from vlora.files import fsync, move_into_place, output_error

__all__ = ["Workspace", "locked"]

_JOURNAL = "journal.jsonl"


class Workspace:
    """Folder of one unfinished output.

    Args:
        output: The final folder.
        signature: Hash of everything that the result depends on.
    """

    def __init__(self, output: Path, signature: str) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.merging")
        self._head = {"signature": signature, "boot": _boot()}
        self._journal = self.folder / _JOURNAL
        self._lock = threading.Lock()

    def finished(self) -> dict[str, dict[str, Any]]:
        """Tensors that an earlier run with the same signature has written, with findings; none without such a run."""
        try:
            lines = self._journal.read_text(encoding="utf-8").split("\n")[
                :-1
            ]  # a torn last line does not count
            head, *rest = (json.loads(line) for line in lines)
            return {line["tensor"]: line.get("findings", {}) for line in rest} if head == self._head else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def start(self) -> None:
        """Make an empty folder and begin its journal after the shards are made, see :meth:`begin`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise output_error(error, self.folder) from error

    def begin(self) -> None:
        """Write the first line of the journal: from here on a killed run can be resumed."""
        self._append(self._head)

    def note(self, tensor: str, findings: Mapping[str, Any]) -> None:
        """Write down that a tensor is finished, and what was found."""
        self._append({"tensor": tensor, **({"findings": findings} if findings else {})})

    def finish(self) -> None:
        """Remove the journal, flush, and give the folder its final name."""
        try:
            self._journal.unlink()
            for path in sorted(self.folder.iterdir()):
                fsync(path)
            fsync(self.folder)
            move_into_place(self.folder, self.output)
            fsync(self.output.parent)
        except OSError as error:
            raise output_error(error, self.output) from error
        self.discard()  # of an output that was replaced

    def discard(self) -> None:
        """Remove the unfinished folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        try:
            with self._lock, self._journal.open("ab", buffering=0) as file:
                file.write(data)
        except OSError as error:
            raise output_error(error, self._journal) from error


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second run out of an output folder.

    Raises:
        OutputError: Another run holds it.
    """
    path = output.with_name(f".{output.name}.merging.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except BlockingIOError:
        raise OutputError(
            f"another merge is writing {output}; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise output_error(error, path) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the lock is released, so that nobody else can hold this file
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the former holder removed the file between our open and our lock


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
