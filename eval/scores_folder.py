"""The score store of an output folder: what was there before is carried along, whatever models are scored now.

While an evaluation runs its store lies beside the output, in ``NAME.work``, and begins with the files of
``NAME/scores``. At the end all of it moves into the new output: scores of models that this evaluation did not ask for,
files of another version, and those set aside. A kill at any moment leaves every file in one of the two places.
"""

import os
import shutil
from pathlib import Path

from vlora.files import output_error

__all__ = ["begin_work", "clear_work", "keep_scores"]


def begin_work(work: Path, scores: Path) -> None:
    """Bring the files of a former output into the work folder; those that are there already are further on.

    Raises:
        OutputError: The work folder cannot be written.
    """
    for path in _files(scores):
        target = work / path.name
        if not target.exists():
            temporary = work / f".{path.name}.tmp-{os.getpid()}"
            try:
                work.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, temporary)  # not flushed: the former output still has it
                temporary.replace(target)
            except OSError as error:
                raise output_error(error, target) from error
            finally:
                temporary.unlink(missing_ok=True)


def keep_scores(work: Path, scores: Path) -> None:
    """Copy all files of the work folder into the new output."""
    scores.mkdir()
    for path in _files(work):
        shutil.copy2(path, scores)


def clear_work(work: Path, scores: Path) -> None:
    """Delete what the output now holds, and the work folder unless something else lies in it."""
    if not work.is_dir():
        return
    for path in _files(scores):
        (work / path.name).unlink(missing_ok=True)
    for path in work.glob(".*.tmp-*"):  # copies that a kill cut off
        path.unlink()
    if not any(work.iterdir()):
        work.rmdir()


def _files(folder: Path) -> list[Path]:
    """Files of a folder, hidden ones left out; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
