"""Is the difference between two evaluations real? Tests on the same items, and on the same posterior draws.

    accuracy                                   McNemar's exact test
    NLL, Brier, ECE, AUROC of correctness,     paired bootstrap: items are resampled for both models at once, draws
    AURC, AUGRC                                for both at once where there are equally many, and the two are crossed
    AUROC of unknown against known             DeLong's test, of one score or of one score a model, the variance over
                                               draws added to its own

Holm's correction is over every test of the comparison, whatever its task, pair and metric. Draw k of two posteriors of
one layout and seed uses the same random numbers, so resampling draw numbers jointly keeps what they have in common. A
fitted temperature stays as it is, whatever is resampled. Of texts the NLL per token and of whole texts is tested so;
accuracy and ECE of tokens have the error of texts alone, since records do not keep them by draw, and so has everything
under a temperature. Of answers questions are resampled, and the draws where they speak of the answer that is judged.

A run is the output folder of ``vlora eval`` (``records.jsonl``), or a folder of several, one per task. What is read
from it and tested is a :class:`RunKind`: choices and texts in :mod:`vlora.eval.compare_choices`, answers
in :mod:`vlora.eval.generation.compare`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from vlora.errors import DataError
from vlora.eval.compare_choices import choice_kind
from vlora.eval.compare_sides import Answered, RunKind, Side, check_same_items, check_same_kind
from vlora.eval.metrics.paired_tests import holm
from vlora.eval.tables import Resampler

__all__ = [
    "COMPARISON_FORMAT",
    "Answered",
    "RunKind",
    "check_predictor",
    "check_scores",
    "compare_kinds",
    "compare_runs",
]

COMPARISON_FORMAT = 1
"""Version of what ``vlora compare --json`` prints."""


def compare_runs(
    runs: Sequence[str],
    *,
    predictor: str | None = None,
    scores: Sequence[str] = (),
    level: float = 0.05,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more evaluations of choices or of texts on the same items.

    Args:
        runs: Folders, or ``FOLDER:MODEL``; one folder with several models will do.
        predictor: ``mean``, ``samples``, ``linearised``, each with ``+temperature`` too, or
            ``samples+draw_temperature``; None takes the draws where a model has them. A model without these
            probabilities stands with its mean.
        scores: Scores that are to tell groups apart: ``NAME`` of both runs, ``EARLIER:LATER``, or ``all``; none takes
            every score that both have but two further divergences between draws.
        level: Chance of any false claim in the whole comparison.
        num_bootstrap: Resamples of the items.
        seed: Seed of all resampling.

    Returns:
        As :func:`compare_kinds`.

    Raises:
        DataError: A run cannot be read, items differ, or there is nothing to compare.
    """
    resampler = Resampler(num_bootstrap, seed)
    found = compare_kinds(runs, [choice_kind(predictor, resampler, scores)], resampler, level=level)
    check_predictor(found, predictor)
    check_scores(found, scores)
    return found


def check_scores(comparison: Mapping[str, Any], scores: Sequence[str]) -> None:
    """Refuse names of scores that nothing was tested with.

    Raises:
        DataError: There is nothing that they could tell apart.
    """
    tests = [test["metric"] for pair in comparison["pairs"] for test in pair["tests"]]
    if scores and not any(": " in metric for metric in tests):
        raise DataError(
            "--score needs groups to tell apart, and these runs hold none; evaluate with detect, or with rows that "
            "have no right answer (data.ood)"
        )


def check_predictor(comparison: Mapping[str, Any], predictor: str | None) -> None:
    """Refuse a comparison by the linearised predictor in which every model stands with its mean.

    Raises:
        DataError: No model has it.
    """
    used = {pair.get(f"predictor_{side}") for pair in comparison["pairs"] for side in "ab"}
    if predictor is not None and predictor.startswith("linearised") and predictor not in used:
        raise DataError(
            f"no model has the predictor {predictor!r}; evaluate a posterior with linearised: true (not for texts)"
        )


def compare_kinds(
    runs: Sequence[str], kinds: Sequence[RunKind], resampler: Resampler, *, level: float = 0.05
) -> dict[str, Any]:
    """Compare two or more evaluations of the same items.

    Runs that hold the same several models are compared model by model, all others against the first model of the first
    run; ``RUN:MODEL`` picks one. Differences are the later one minus the earlier one.

    Args:
        runs: Folders, or ``FOLDER:MODEL``; one folder with several models will do.
        kinds: What a run may be.
        resampler: Source of the bootstrap resamples.
        level: Chance of any false claim in the whole comparison.

    Returns:
        Plain JSON values: ``pairs``, each with its ``tests``, and ``family``, the number of tests that Holm's
        correction is over.

    Raises:
        DataError: A run cannot be read, runs of two kinds, items differ, or there is nothing to compare.
    """
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, got {level}")
    sides = [side for run in runs for side in _read(run, kinds)]
    by_task = {task: list(found) for task, found in groupby(sorted(sides, key=_task), key=_task)}
    folders = list(dict.fromkeys(side.run for side in sides))
    tasks = list(dict.fromkeys(side.task for side in sides))
    pairs: list[dict[str, Any]] = []
    for task in tasks:
        for a, b in _pairs(by_task[task], folders):
            check_same_kind(a, b)
            check_same_items(a, b)
            pairs.append({"task": task, "a": a.label, "b": b.label, **a.kind.test(a.table, b.table)})
    if not pairs:
        raise DataError("there is nothing to compare: give two runs, or one run with several models")
    _adjust(pairs, level)
    return {
        "format": COMPARISON_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": list(runs),
        "level": level,
        "num_bootstrap": resampler.num_resamples,
        "seed": resampler.seed,
        "family": sum(len(pair["tests"]) for pair in pairs),
        "pairs": pairs,
    }


def _task(side: Side) -> str:
    return side.task


def _read(run: str, kinds: Sequence[RunKind]) -> list[Side]:
    """Models of a run, task by task."""
    folder, model = Path(run), None
    if not folder.is_dir() and ":" in run:
        head, _, model = run.rpartition(":")
        folder = Path(head)
    if not folder.is_dir():
        raise DataError(f"{run} is not a folder; give the output folder of vlora eval, or FOLDER:MODEL")
    own = _records_in(folder, kinds)
    inside = [] if own else [(path.name, _records_in(path, kinds)) for path in sorted(folder.iterdir())]
    found = {"": own} if own else {task: one for task, one in inside if one}
    if not found:
        names = " or ".join(kind.file for kind in kinds)
        raise DataError(
            f"{folder} holds no {names}, nor does a folder in it; is it the output of vlora eval?"
        )
    sides = [
        Side(str(folder), task, kind, table)
        for task, (kind, path) in found.items()
        for table in kind.read(path)
        if model in (None, table.model)
    ]
    if not sides:
        raise DataError(f"{folder} holds no model {model!r}; look at its results.json for the names")
    return sides


def _records_in(folder: Path, kinds: Sequence[RunKind]) -> tuple[RunKind, Path] | None:
    """The records of one output folder; None where there are none."""
    return next(((kind, folder / kind.file) for kind in kinds if (folder / kind.file).is_file()), None)


def _pairs(sides: Sequence[Side], folders: Sequence[str]) -> list[tuple[Side, Side]]:
    """Which model is set against which, later minus earlier."""
    by_run: dict[str, dict[str, Side]] = {}
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
