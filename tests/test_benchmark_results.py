"""Committed results of all benchmarks: JSON that strict parsers read."""

import json
from pathlib import Path

import pytest

from benchmarks.rows import keep_record

BENCHMARKS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*/results"))


def refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


@pytest.mark.parametrize("folder", BENCHMARKS, ids=lambda folder: folder.parent.name)
def test_results_parse_strictly(folder):
    for path in folder.rglob("*.json"):
        try:
            json.loads(path.read_bytes(), parse_constant=refuse)
        except ValueError as error:
            pytest.fail(f"{path.relative_to(folder)}: {error}")


def test_records_are_written_without_numbers_that_json_lacks(tmp_path):
    target = tmp_path / "part" / "unit.json"
    keep_record(target, lambda: {"risk": float("nan"), "clip": [float("inf"), 1.5], "n": 3})
    found = json.loads(target.read_bytes(), parse_constant=refuse)
    assert (found["risk"], found["clip"], found["n"]) == (None, [None, 1.5], 3)
