"""Writing outputs so that a failed or killed run never damages what was there before.

Everything is written to a temporary sibling, flushed to disk, and moved into place in one rename.
"""

import ctypes
import errno
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlora.errors import OutputError, OutputExistsError

__all__ = [
    "atomic_folder",
    "atomic_write",
    "check_output_folder",
    "ends_line",
    "fsync",
    "move_into_place",
    "output_error",
    "output_path",
    "scratch_error",
    "strict_json",
]


def output_path(folder: str | os.PathLike) -> Path:
    """The output folder with the home folder expanded; not the working directory, which cannot be exchanged.

    Raises:
        OutputError: The folder is the working directory or holds it.
    """
    path, here = Path(folder).expanduser(), Path.cwd()
    if path.resolve() in (here, *here.parents):
        raise OutputError(
            f"output {path} is the folder you are in, or one above it, and cannot be replaced; name a new folder"
        )
    return path


def check_output_folder(
    folder: str | os.PathLike, marker: str, *, overwrite: bool = True, cure: str = "set overwrite=true"
) -> Path:
    """Refuse an output folder that holds something this program did not make.

    Args:
        folder: Where the output is to go; need not exist.
        marker: File that a former output of the same kind would hold, e.g. ``adapter_config.json``.
        overwrite: Whether a former output of the same kind may be replaced.
        cure: How the caller's user allows that.

    Raises:
        OutputExistsError: The folder holds something else, or a former output and ``overwrite`` is false.
        OutputError: The folder is the working directory.
    """
    path = output_path(folder)
    if path.is_dir():
        entries = sorted(entry.name for entry in path.iterdir())
        if not entries:
            return path
        if marker not in entries:
            shown = ", ".join(entries[:3]) + (", …" if len(entries) > 3 else "")
            raise OutputExistsError(
                f"output folder {path} holds something else ({shown}) and no {marker}; choose another folder"
            )
        if not overwrite:
            raise OutputExistsError(f"output folder {path} already holds a result; {cure} or move it")
    elif path.exists():
        raise OutputExistsError(f"output {path} is a file where a folder was expected; choose another name")
    return path


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Fill a temporary folder; on success it takes the place of ``folder``, on failure nothing changes.

    A link stays a link: the folder that it points to is replaced.

    Raises:
        OutputError: The place cannot be written (permission, space, read-only), with the old content intact.
    """
    target = Path(folder).resolve() if Path(folder).is_symlink() else Path(folder)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        temporary.chmod(0o755)  # mkdtemp makes private folders, outputs are ordinary ones
        yield temporary
        for path in sorted(temporary.rglob("*")):
            fsync(path)
        move_into_place(temporary, target)
        fsync(target.parent)
    except OSError as error:
        raise output_error(error, target) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def atomic_write(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write one file whole or not at all.

    Raises:
        OutputError: The place cannot be written, with the old file intact.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """A name to write a file under; on success it takes the place of ``path``, on failure nothing changes.

    Raises:
        OutputError: The place cannot be written, with the old file intact.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync(temporary)
        temporary.replace(target)
    except OSError as error:
        raise output_error(error, target) from error
    finally:
        with suppress(OSError):  # where the folder itself is none, nothing was made
            temporary.unlink(missing_ok=True)


def ends_line(path: str | os.PathLike) -> bool:
    """Whether a file is empty or ends with a whole line, so that lines can be added to it."""
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def scratch_error(error: Exception) -> OutputError:
    """The error for a temporary folder that is full or cannot be written."""
    return OutputError(
        f"cannot write to the temporary folder {tempfile.gettempdir()}: {error}; free some space or set TMPDIR"
    )


def output_error(error: OSError, target: Path) -> OSError:
    """The error for an output that could not be written, with the cure for its cause."""
    if isinstance(error, (OutputError, OutputExistsError)):
        return error
    cures = {
        errno.ENOSPC: "free some space or choose another disk",
        errno.EACCES: "choose a folder you may write to",
        errno.EPERM: "choose a folder you may write to",
        errno.EROFS: "choose a folder you may write to",
    }
    cure = cures.get(error.errno or 0, "check the path")
    return OutputError(f"cannot write {target}: {error.strerror or error}; {cure} (nothing was changed)")


def fsync(path: Path) -> None:
    """Flush a file or folder to disk, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot sync a directory
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def move_into_place(new: Path, target: Path) -> None:
    """Give a finished folder its final name; what had the name before is gone, or left under the new one's."""
    if not target.exists():
        new.rename(target)
        return
    if _exchange(new, target):  # the old content is now under the temporary name and is removed by the caller
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one system call (Linux ``renameat2``); False where that is not available."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0


def strict_json(content: Any, indent: int | None = 1) -> str:
    """Content as JSON that strict parsers read, too: numbers that are not finite become ``null``.

    Args:
        content: Dictionaries, lists and plain values.
        indent: As of ``json.dumps``.

    Returns:
        The text with a line break at its end.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
