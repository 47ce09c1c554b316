"""Evaluations of choices and of texts as :func:`vlora.eval.compare.compare_kinds` reads and tests them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.eval.compare_sides import RunKind
from vlora.eval.compare_tests import compare_tables
from vlora.eval.comparisons import Detect
from vlora.eval.records import Record, read_records
from vlora.eval.results import build_tables, read_results
from vlora.eval.tables import ModelTable, Resampler

__all__ = ["ScoredRun", "choice_kind"]


@dataclass(frozen=True)
class ScoredRun:
    """One model of an evaluation of choices or texts, with what its run asked."""

    table: ModelTable
    detect: Detect
    """Groups to tell apart as configured; empty where nothing was."""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.table.model

    @property
    def records(self) -> Sequence[Record]:
        """Its records."""
        return self.table.records

    @property
    def row_of(self) -> Mapping[str, int]:
        """Row of every item."""
        return self.table.row_of


def choice_kind(predictor: str | None, resampler: Resampler, scores: Sequence[str] = ()) -> RunKind:
    """Evaluations of choices and of texts; arguments as for :func:`vlora.eval.compare.compare_runs`."""

    def test(a: ScoredRun, b: ScoredRun) -> Mapping[str, Any]:
        detect = b.detect or a.detect
        return compare_tables(a.table, b.table, predictor, resampler, detect=detect, scores=scores)

    return RunKind(
        name="choices",
        file="records.jsonl",
        read=lambda path: _read_scored(path, resampler),
        test=test,
        identity=_identity,
    )


def _read_scored(path: Path, resampler: Resampler) -> list[ScoredRun]:
    """Every model of a run; one without ``results.json`` asked for nothing."""
    results = path.with_name("results.json")
    settings = (read_results(results).get("settings") or {}) if results.is_file() else {}
    tables = build_tables(read_records(path), None, None, resampler)
    return [ScoredRun(table, settings.get("detect") or {}) for table in tables]


def _identity(record: Record) -> dict[str, Any]:
    """What two records of one item must agree in; files of earlier versions hold the beginning of the text alone."""
    text = {"text": record.text_sha256} if record.text_sha256 else {"text (its beginning)": record.text}
    return text | {name: getattr(record, name) for name in ("label", "choices", "group", "split")}
