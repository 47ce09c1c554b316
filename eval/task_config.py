"""``task: arc_easy`` and ``data: FOLDER`` in a configuration, spelled out as what they mean.

The result is an ordinary configuration: it can be saved, read and changed like one written by hand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from vlora.data import Task
from vlora.errors import ConfigError, DataError
from vlora.eval.task_files import Split, TaskFile, load_task

__all__ = ["expand_task", "find_split", "task_sources"]

_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def expand_task(values: dict[str, Any]) -> dict[str, Any]:
    """Spell a named task out in the values of a ``vlora eval`` configuration; others pass as they are.

    Args:
        values: The configuration as parsed, overrides applied. ``data`` may be a folder, a file, a mapping with
            ``folder`` or ``test``, or missing, which takes the task's place on the hub.

    Raises:
        ConfigError: No such task, or one that this kind of evaluation does not score.
        DataError: The folder does not hold the task's files.
    """
    name = values.get("task")
    if not isinstance(name, str) or name in get_args(Task):
        return values
    task = load_task(name)
    if task.kind != "multiple_choice":
        raise ConfigError(f"task {name} asks for answers, not choices; add kind: generation to score it")
    own = values.get("data")
    options = dict(own) if isinstance(own, Mapping) else {}
    place = options.pop("folder", None) if isinstance(own, Mapping) else own
    sources = {} if "test" in options else task_sources(task, name, place)
    columns = {"prompt": "prompt", "choices": "choices", "answer": "answer", "group": "group"}
    grouped = {
        "group": "group" if task.group else None
    }  # without groups of its own, rows go by their set's name
    fixed = {**columns, **grouped, "separator": task.separator, "task_file": name}
    clash = sorted(set(options) & {*columns, "task_file", "answer_offset", "text", "label"})
    if clash:
        raise ConfigError(
            f"data.{clash[0]}: task {name} says how rows are read; copy its file to change that"
        )
    return {**values, "task": "multiple_choice", "data": {**fixed, **sources, **options}}


def task_sources(task: TaskFile, name: str, place: str | None) -> dict[str, Any]:
    """Sources of a task's splits: ``test``, and ``validation`` and ``fewshot`` where there are any.

    Args:
        task: The task.
        name: Its name, for messages.
        place: Folder or file; None for the hub.

    Raises:
        ConfigError: Neither a place nor one on the hub.
        DataError: The folder does not hold the task's test file.
    """
    if place is not None:
        folder = Path(place).expanduser()
        if not folder.is_dir():
            return {"test": place}
        found = {
            split: find_split(folder, task.splits.get(split, []))
            for split in ("test", "validation", "fewshot")
        }
        if found["test"] is None:
            wanted = ", ".join(task.splits.get("test", []))
            inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
            raise DataError(
                f"task {name}: {folder} holds no test file ({wanted} with {_ENDINGS[0]} or alike); it holds {inside}"
            )
        if task.fewshot is None:
            found["fewshot"] = None
        return {split: path for split, path in found.items() if path is not None}
    if task.hub is None:
        raise ConfigError(f"task {name} has no place on the hub; give data: a folder or file of its rows")
    hub = {"path": task.hub.path, "name": task.hub.name, "revision": task.hub.revision}
    splits: dict[Split, str | None] = {"test": task.hub.test, "validation": task.hub.validation}
    if task.fewshot is not None:
        splits["fewshot"] = task.hub.fewshot
    return {split: {**hub, "split": wanted} for split, wanted in splits.items() if wanted is not None}


def find_split(folder: Path, names: list[str]) -> str | None:
    """First file of these names in a folder, in any readable ending, also gzipped; None without one."""
    for name in names:
        for ending in _ENDINGS:
            for file in (folder / f"{name}{ending}", folder / f"{name}{ending}.gz"):
                if file.is_file():
                    return str(file)
    return None
