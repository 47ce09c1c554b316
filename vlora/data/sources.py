"""Rows from files, folders and the hub, read by the ``datasets`` library."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora.data.config import Source, SourceConfig
from vlora.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load_rows", "take_indices", "take_rows"]

_BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_rows(
    source: Source, *, split: str = "train", max_rows: int | None = None, seed: int = 0
) -> "Dataset":
    """Read a source into a data set of rows.

    Args:
        source: Path, list of paths or :class:`SourceConfig`. A path is a JSONL/CSV/TSV/Parquet/TXT file
            (``.gz`` too), a folder written by ``Dataset.save_to_disk`` or holding such files, or a hub id.
        split: Split taken when the source has several and does not name one.
        max_rows: Keep this many rows, drawn without replacement and left in order; None keeps all.
        seed: Seed of that draw.

    Raises:
        DataError: nothing there, unreadable, no such split, or no rows.
    """
    config = source if isinstance(source, SourceConfig) else SourceConfig(path=source)
    rows = _read(config, split)
    if len(rows) == 0:
        raise _no_rows(config)
    return take_rows(rows, max_rows, seed)


def take_rows(rows: "Dataset", max_rows: int | None, seed: int = 0) -> "Dataset":
    """Draw ``max_rows`` rows without replacement and leave them in order; None or enough takes all."""
    chosen = take_indices(len(rows), max_rows, seed)
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def take_indices(count: int, max_rows: int | None, seed: int = 0) -> list[int]:
    """Rows that :func:`take_rows` keeps of ``count``, in order."""
    if max_rows is None or max_rows >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:max_rows].tolist())


def _read(config: SourceConfig, default_split: str) -> "Dataset":
    """Dispatch on what the path is: files, a saved folder, a folder of files, or a hub id."""
    paths = [config.path] if isinstance(config.path, str) else list(config.path)
    if not paths:
        raise DataError("data source is an empty list of paths; name at least one file")
    if len(paths) > 1 or _suffix(paths[0]) in _BUILDERS:
        return _read_files([_existing(path) for path in paths], config)
    path = Path(paths[0]).expanduser()
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        from datasets import load_from_disk

        return _pick_split(_guarded(config, load_from_disk, str(path)), config, default_split)
    if path.is_file():
        raise DataError(f"data file {path} must end in one of {', '.join(_BUILDERS)} (also .gz)")
    if not path.is_dir() and not _HUB_ID.fullmatch(paths[0]):
        raise DataError(f"data source {path} does not exist")
    return _read_repository(str(path) if path.is_dir() else paths[0], config, default_split)


def _read_files(files: list[str], config: SourceConfig) -> "Dataset":
    """Read one or more files of one kind."""
    from datasets import load_dataset

    kinds = {_BUILDERS.get(_suffix(file), "") for file in files}
    if len(kinds) != 1 or "" in kinds:
        raise DataError(f"data files must share one format of {', '.join(_BUILDERS)}, got {', '.join(files)}")
    options: dict[str, Any] = {"sep": "\t"} if _suffix(files[0]) == ".tsv" else {}
    if all(Path(file).stat().st_size == 0 for file in files):
        raise _no_rows(config)
    split = config.split or "train"
    return _guarded(config, load_dataset, kinds.pop(), data_files={"train": files}, split=split, **options)


def _read_repository(path: str, config: SourceConfig, default_split: str) -> "Dataset":
    """Read a hub data set, or a local folder laid out like one."""
    from datasets import load_dataset

    loaded = _guarded(config, load_dataset, path, config.name, split=config.split, revision=config.revision)
    return loaded if config.split else _pick_split(loaded, config, default_split)


def _pick_split(loaded: Any, config: SourceConfig, default_split: str) -> "Dataset":
    """Take the named split, else the default one, else the only one."""
    from datasets import Dataset

    if isinstance(loaded, Dataset):
        return loaded
    wanted = config.split or default_split
    if wanted in loaded:
        return loaded[wanted]
    if config.split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    raise DataError(f"data source {_shown(config)} has no split {wanted!r}; it has {', '.join(loaded)}")


def _guarded(config: SourceConfig, load: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a loader of ``datasets`` and turn its failures into one line."""
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled

    quiet = are_progress_bars_disabled()
    disable_progress_bars()  # one bar a file is noise beside the training bar
    readers = logging.getLogger("datasets.packaged_modules")
    level = readers.level
    readers.setLevel(logging.CRITICAL)  # they log what they raise, and the reason is in our one line
    try:
        return load(*args, **kwargs)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if "corresponds to no data" in str(cause):
            raise _no_rows(config) from error
        reason = (str(cause) or type(cause).__name__).strip().splitlines()[0]
        raise DataError(f"data source {_shown(config)} cannot be read: {reason}") from error
    finally:
        readers.setLevel(level)
        if not quiet:
            enable_progress_bars()


def _no_rows(config: SourceConfig) -> DataError:
    """The error for a source that is there but empty."""
    return DataError(f"data source {_shown(config)} has no rows; expected at least one")


def _existing(path: str) -> str:
    """The path with the home folder expanded, which must be a file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"data file {file} does not exist (working directory {Path.cwd()})")
    return str(file)


def _suffix(path: str) -> str:
    """File ending in lower case without a trailing ``.gz``."""
    return Path(path.lower().removesuffix(".gz")).suffix


def _shown(config: SourceConfig) -> str:
    """The source as the user wrote it, for messages."""
    path = config.path if isinstance(config.path, str) else ", ".join(config.path)
    details = [str(part) for part in (config.name, config.split, config.revision) if part]
    return f"{path!r}" + (f" ({', '.join(details)})" if details else "")
