"""From records to ``results.json``: every number of an evaluation with its interval, and no model in sight.

The format is described in ``docs/results.md``; what is written here is what is documented there.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlora.errors import DataError
from vlora.eval.baselines import list_baselines
from vlora.eval.comparisons import Detect, compare_models, default_detection, detect_groups
from vlora.eval.figure_data import figure_data
from vlora.eval.predictions import ChoiceTable
from vlora.eval.promises import check_promises
from vlora.eval.records import Record
from vlora.eval.tables import ALL, ModelTable, Resampler
from vlora.eval.text_ensemble import TextEnsembleTable
from vlora.eval.token_predictions import TokenTable
from vlora.eval.wrong_answers import find_wrong_answers
from vlora.files import atomic_write

__all__ = ["RESULTS_FORMAT", "build_tables", "compute_results", "read_results", "write_results"]

RESULTS_FORMAT = 1
"""Version of the format of ``results.json``; readers refuse a newer one."""


def compute_results(
    records: Iterable[Record | Mapping[str, Any]],
    *,
    models: Sequence[Mapping[str, Any]] | None = None,
    detect: Detect | None = None,
    task: str | None = None,
    num_samples: int | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
    created: str | None = None,
    **sections: Mapping[str, Any] | int,
) -> dict[str, Any]:
    """Compute everything that ``results.json`` holds.

    Args:
        records: Rows of all models, as records or as their dictionaries.
        models: Description of each model, with at least its ``name``; their order is that of the tables, and the first
            is the reference of the comparisons. None takes the models as they appear.
        detect: Detection questions by name, ``{"positive": [groups], "negative": [groups]}``; None or empty sets every
            out-of-distribution or unanswerable group against the labelled test groups.
        task: Name of the task, for the reader.
        num_samples: Posterior draws S; needed for language modelling, whose records do not tell.
        num_bootstrap: Resamples behind every interval.
        seed: Seed of all resampling.
        created: ISO time stamp; None is now, in UTC.
        **sections: Further parts that are passed on as they are: ``cost``, ``settings``, ``versions``, ``hardware``.

    Returns:
        A dictionary of plain JSON values; None stands for a number that is not defined.

    Raises:
        DataError: No record to report on, records and models that do not match, or records that do not fit together.
    """
    resampler = Resampler(num_bootstrap, seed)
    tables = build_tables(records, models, num_samples, resampler)
    drawn = [table.num_samples for table in tables]
    antithetic = any(table.records[0].antithetic for table in tables if table.num_samples)
    described = [dict(model) for model in models or [{"name": table.model} for table in tables]]
    asked, settings = detect or default_detection(tables), sections.get("settings")
    given = settings if isinstance(settings, Mapping) else {}
    return {
        "format": RESULTS_FORMAT,
        "task": task or ("multiple_choice" if isinstance(tables[0], ChoiceTable) else "causal_lm"),
        "created": created or datetime.now(UTC).isoformat(timespec="seconds"),
        "num_samples": num_samples if num_samples is not None else max(drawn),
        "antithetic": antithetic,
        "num_bootstrap": num_bootstrap,
        "seed": seed,
        "models": described,
        "rows": [row for table in tables for row in _rows(table, resampler)],
        "wrong_answers": find_wrong_answers(tables, resampler),
        "detection": detect_groups(tables, asked, resampler),
        "baselines": list_baselines(tables, described, given, detects=bool(asked)),
        "comparisons": compare_models(tables, resampler),
        "promises": check_promises(tables),
        "figures": figure_data(tables, seed),
        **{
            name: section if isinstance(section, int) else dict(section) for name, section in sections.items()
        },
    }


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results as JSON, all or nothing.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
        ValueError: The dictionary holds something that JSON cannot.
    """
    atomic_write(path, json.dumps(results, allow_nan=False, ensure_ascii=False, indent=1) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a ``results.json``.

    Raises:
        DataError: The file is missing, damaged, something else, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path} is not a file; run the evaluation first or give the path of its results.json"
        )
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); run the evaluation again") from None
    found = results.get("format") if isinstance(results, dict) else None
    if not isinstance(found, int) or "rows" not in results:
        raise DataError(f"{path} is not a results.json: expected the keys 'format' and 'rows'")
    if found > RESULTS_FORMAT:
        raise DataError(
            f"{path} has format {found}, this version reads up to {RESULTS_FORMAT}; install a newer vlora"
        )
    return results


def _rows(table: ModelTable, resampler: Resampler) -> list[dict[str, Any]]:
    """One row per predictor and group, the group of all labelled test rows first."""
    groups = [(group, table.rows(group)) for group in (ALL, *table.groups())]
    return [
        {
            **{"model": table.model, "predictor": predictor, "group": group},
            "metrics": table.summarise(predictor, rows, resampler, full=group == ALL),
        }
        for predictor in table.predictors
        for group, rows in groups
        if len(rows)
    ]


def build_tables(
    records: Iterable[Record | Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]] | None,
    num_samples: int | None,
    resampler: Resampler,
) -> list[ModelTable]:
    """Records sorted by model, in the order of ``models``; arguments as in :func:`compute_results`.

    Raises:
        DataError: As there.
    """
    by_model: dict[str, list[Record]] = {}
    for row in records:
        record = row if isinstance(row, Record) else Record.from_dict(row)
        by_model.setdefault(record.model, []).append(record)
    names = list(by_model) if models is None else [str(model["name"]) for model in models]
    _check_names(names, by_model)
    tables: list[ModelTable] = []
    for name in names:
        rows = by_model[name]
        tables.append(_table(name, rows, num_samples, resampler))
    _set_base(tables, models)
    if len({isinstance(table, ChoiceTable) for table in tables}) > 1:
        raise DataError(
            "some models have language-modelling records and others not; evaluate them on one task"
        )
    if not any(table.groups() for table in tables):
        raise DataError("all records belong to the validation split; add test or ood rows to report on")
    if any(ALL in table.groups() for table in tables):
        raise DataError(
            f"{ALL!r} is the name of the group of all test rows; choose another name for that group"
        )
    return tables


def _table(name: str, rows: list[Record], num_samples: int | None, resampler: Resampler) -> ModelTable:
    """Records of one model as the table that they make."""
    if rows[0].lm is None:
        return ChoiceTable(name, rows, resampler)
    if rows[0].lm.correct is None:
        return TextEnsembleTable(name, rows)
    return TokenTable(name, rows, num_samples)


def _set_base(tables: Sequence[ModelTable], models: Sequence[Mapping[str, Any]] | None) -> None:
    """Tell adapters what the base model said where it was evaluated beside them."""
    kinds = {str(model["name"]): model.get("kind") for model in models or ()}
    bases = [table for table in tables if kinds.get(table.model) == "base"]
    for table in tables:
        if (
            bases
            and table is not bases[0]
            and isinstance(table, ChoiceTable)
            and isinstance(bases[0], ChoiceTable)
        ):
            table.set_base(bases[0])


def _check_names(names: Sequence[str], by_model: Mapping[str, Sequence[Record]]) -> None:
    """Models and records must name the same models, each once."""
    if not by_model:
        raise DataError("there are no records; was the evaluation interrupted before its first item?")
    if len(set(names)) < len(names):
        raise DataError(f"model names must differ, got {', '.join(names)}")
    if set(names) != set(by_model):
        raise DataError(f"models are named {', '.join(names)}, but the records hold {', '.join(by_model)}")
