"""Is the difference between two evaluations real? Tests on the same items, and on the same posterior draws.

    accuracy                                   McNemar's exact test
    NLL, Brier, ECE, AUROC of correctness,     paired bootstrap: items are resampled for both models at once, draws
    AURC, AUGRC                                for both at once where there are equally many, and the two are crossed
    AUROC of unknown against known             DeLong's test

with Holm's correction over every test of the comparison, whatever its task, pair and metric. Draw k of two posteriors
of one layout and seed uses the same random numbers, so resampling draw numbers jointly keeps what they have in common.

A run is the output folder of ``vlora eval`` (``records.jsonl``), or a folder of several, one per task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from vlora.errors import DataError
from vlora.eval.compare_tests import compare_tables
from vlora.eval.metrics.paired_tests import holm
from vlora.eval.records import read_records
from vlora.eval.results import build_tables
from vlora.eval.tables import ModelTable, Resampler

__all__ = ["COMPARISON_FORMAT", "compare_runs"]

COMPARISON_FORMAT = 1
"""Version of what ``vlora compare --json`` prints."""
_RECORDS = "records.jsonl"


@dataclass(frozen=True)
class _Side:
    """One model of one run on one task."""

    run: str
    task: str
    table: ModelTable

    @property
    def label(self) -> str:
        """``run:model``, or the model alone where the run is called like it."""
        name = Path(self.run).name or self.run
        return name if name == self.table.model else f"{name}:{self.table.model}"


def compare_runs(
    runs: Sequence[str],
    *,
    predictor: str | None = None,
    level: float = 0.05,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more evaluations of the same items.

    Runs that hold the same several models are compared model by model, all others against the first model of the first
    run; ``RUN:MODEL`` picks one. Differences are the later one minus the earlier one.

    Args:
        runs: Folders, or ``FOLDER:MODEL``; one folder with several models will do.
        predictor: ``mean``, ``samples``, ``mean+temperature`` or ``samples+temperature``; None takes the draws where a
            model has them, else its mean.
        level: Chance of any false claim in the whole comparison.
        num_bootstrap: Resamples of the items.
        seed: Seed of all resampling.

    Returns:
        Plain JSON values: ``pairs``, each with its ``tests``, and ``family``, the number of tests that Holm's
        correction is over.

    Raises:
        DataError: A run cannot be read, items differ, or there is nothing to compare.
    """
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, got {level}")
    resampler = Resampler(num_bootstrap, seed)
    sides = [side for run in runs for side in _read(run, resampler)]
    by_task = {task: list(found) for task, found in groupby(sorted(sides, key=_task), key=_task)}
    folders = list(dict.fromkeys(side.run for side in sides))
    tasks = list(dict.fromkeys(side.task for side in sides))
    pairs: list[dict[str, Any]] = []
    for task in tasks:
        for a, b in _pairs(by_task[task], folders):
            _check_same_items(a, b)
            tests = compare_tables(a.table, b.table, predictor, resampler)
            pairs.append({"task": task, "a": a.label, "b": b.label, **tests})
    if not pairs:
        raise DataError("there is nothing to compare: give two runs, or one run with several models")
    _adjust(pairs, level)
    return {
        "format": COMPARISON_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": list(runs),
        "level": level,
        "num_bootstrap": num_bootstrap,
        "seed": seed,
        "family": sum(len(pair["tests"]) for pair in pairs),
        "pairs": pairs,
    }


def _task(side: _Side) -> str:
    return side.task


def _read(run: str, resampler: Resampler) -> list[_Side]:
    """Models of a run, task by task."""
    folder, model = Path(run), None
    if not folder.is_dir() and ":" in run:
        head, _, model = run.rpartition(":")
        folder = Path(head)
    if not folder.is_dir():
        raise DataError(f"{run} is not a folder; give the output folder of vlora eval, or FOLDER:MODEL")
    found = {"": folder} if (folder / _RECORDS).is_file() else {
        path.name: path for path in sorted(folder.iterdir()) if (path / _RECORDS).is_file()
    }  # fmt: skip
    if not found:
        raise DataError(
            f"{folder} holds no {_RECORDS}, nor does a folder in it; is it the output of vlora eval?"
        )
    sides = [
        _Side(str(folder), task, table)
        for task, path in found.items()
        for table in build_tables(read_records(path / _RECORDS), None, None, resampler)
        if model in (None, table.model)
    ]
    if not sides:
        raise DataError(f"{folder} holds no model {model!r}; look at its results.json for the names")
    return sides


def _pairs(sides: Sequence[_Side], folders: Sequence[str]) -> list[tuple[_Side, _Side]]:
    """Which model is set against which, later minus earlier."""
    by_run: dict[str, dict[str, _Side]] = {}
    for side in sides:
        if side.table.model in by_run.setdefault(side.run, {}):
            raise DataError(f"{side.label} is given twice; a model cannot be compared with itself")
        by_run[side.run][side.table.model] = side
    missing = [run for run in folders if run not in by_run]
    if missing:
        raise DataError(f"task {sides[0].task!r} is missing from {', '.join(missing)}; evaluate it there too")
    names = [tuple(models) for models in by_run.values()]
    if len(by_run) > 1 and len(names[0]) > 1 and all(set(name) == set(names[0]) for name in names):
        first, *others = by_run.values()
        return [(other[model], first[model]) for model in names[0] for other in others]
    reference, *rest = sides
    return [(side, reference) for side in rest]


def _check_same_items(a: _Side, b: _Side) -> None:
    """Both sides must have answered the same questions, with the same right answers."""
    only = [
        [item for item in one.table.row_of if item not in other.table.row_of and _counts(one, item)]
        for one, other in ((a, b), (b, a))
    ]
    if any(only):
        parts = [
            f"{len(items)} only in {side.label} (first {items[0]})"
            for items, side in zip(only, (a, b), strict=True)
            if items
        ]
        raise DataError(f"the items differ: {', '.join(parts)}; evaluate both models on the same rows")
    for item, row in a.table.row_of.items():
        if not _counts(a, item):
            continue
        ours, theirs = a.table.records[row], b.table.records[b.table.row_of[item]]
        for name in ("text", "label", "choices", "group", "split"):
            if getattr(ours, name) != getattr(theirs, name):
                raise DataError(
                    f"the items differ: {item} has another {name} in {a.label} than in {b.label}; evaluate both "
                    "models on the same rows"
                )


def _counts(side: _Side, item: str) -> bool:
    """Whether an item is reported on; validation rows only fit temperatures."""
    return side.table.records[side.table.row_of[item]].split != "validation"


def _adjust(pairs: Sequence[Mapping[str, Any]], level: float) -> None:
    """Give every test its Holm-adjusted p-value and a verdict, in place."""
    tests = [(pair, test) for pair in pairs for test in pair["tests"]]
    defined = [(pair, test) for pair, test in tests if test["p"] is not None]
    adjusted = holm([test["p"] for _, test in defined]) if defined else []
    for _, test in tests:
        test |= {"p_holm": None, "better": None}
    for (pair, test), p in zip(defined, adjusted, strict=True):
        test["p_holm"] = float(p)
        if p <= level and test["difference"]:
            higher = (test["difference"] > 0) == test["higher_is_better"]
            test["better"] = pair["a"] if higher else pair["b"]
