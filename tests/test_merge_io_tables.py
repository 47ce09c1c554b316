"""The tables of ``benchmarks/merge_io`` on made-up results whose numbers are worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.merge_io import table
from benchmarks.readme_table import read_results, replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "merge_io"


def turn(wall, cpu, memory=0.0, **more):
    return {"wall": wall, "cpu": cpu, "memory": memory, "load": 0.5, **more}


@pytest.fixture
def records() -> dict:
    common = {"threads": 2, "hardware": {"cpu": "model", "cores": 2, "load": 0.5}, "versions": {"torch": "2"}}
    rounds = [
        {"copy 2": turn(2.0, 1.0, 8e6), "vlora linear": turn(3.0, 2.0, 30e6)},
        {"copy 2": turn(4.0, 1.0, 8e6), "vlora linear": turn(4.8, 1.5, 50e6)},
        {"copy 2": turn(3.0, 1.0, 8e6), "vlora linear": turn(3.0, 1.9, 40e6)},
    ]
    other = turn(9.4, 11.0, 7.4e9, start_up=turn(4.0, 4.0, 0.9e9))
    into = {"vlora_into": turn(1.5, 2.0, 60e6), "peft_into": turn(9.0, 8.0, 2.5e9)}
    matching = {f"linear_family gradient_matching {rank}": turn(0.5, 1.7) for rank in ("keep", "lossless")}
    return {
        "linear": {**common, "rounds": rounds},
        "mergekit_linear": {**common, "rounds": [{"mergekit linear": other}]},
        "into_base": {**common, "rounds": [into]},
        "module_gradient_matching": {**common, "rounds": [matching]},
    }


def cells(text: str, name: str) -> list[str]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    (found,) = [line for line in rows if line and line[0] == name]
    return found[1:]


def test_ratios_are_paired_by_round(records):
    text = table.checkpoint_table(records)
    # wall ratios 1.5, 1.2 and 1.0; CPU ratios 2, 1.5 and 1.9
    expected = ["3.0 (3.0 to 4.8)", "1.9 (1.5 to 2.0)", "40", "1.20", "1.90"]
    assert cells(text, "vlora, linear, 2 models") == expected
    assert cells(text, "plain copy for linear, 2 models") == [
        "3.0 (2.0 to 4.0)",
        "1.0 (1.0 to 1.0)",
        "8",
        "1.00",
        "1.00",
    ]
    assert cells(text, "mergekit 0.1.5, linear, 2 models")[:3] == ["9.4", "11.0", "6500"]
    assert cells(text, "TIES, base + 2") == ["—"] * 5


def test_other_tables(records):
    assert cells(table.base_table(records), "PEFT `merge_and_unload` and save") == ["9.0", "8.0", "2500"]
    found = cells(table.module_table(records), "vlora, gradient matching with full Grams, rank 16")
    assert found == ["0.500", "1.700"]
    assert (
        "load average (other work on the same cores) at the end of a measurement: 0.5 to 0.5"
        in table.conditions(records)
    )
    assert table.base_table({}) == "Not measured.\n"


def test_the_readme_stands_as_the_results_say():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert replaced(text, table.block(read_results(FOLDER / "results"))) == text


def test_results_name_no_machine():
    for path in (FOLDER / "results").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "/tmp" not in text and "/work" not in text and json.loads(text)["rounds"]
