"""The tables of ``benchmarks/merge_io`` on made-up results whose numbers are worked out by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.merge_io import run, table
from benchmarks.merge_io.phases import Phases, phase_places
from benchmarks.readme_table import read_results, replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "merge_io"


def turn(wall, cpu, memory=0.0, **more):
    return {"wall": wall, "cpu": cpu, "memory": memory, "load": 0.5, **more}


@pytest.fixture
def records() -> dict:
    common = {
        "threads": 2, "layers": 22, "hardware": {"cpu": "model", "cores": 2, "load": 0.5}, "versions": {"torch": "2"},
    }  # fmt: skip
    other = turn(9.4, 11.0, 7.4e9, start_up=turn(4.0, 4.0, 0.9e9))
    rounds = [
        {"copy 2": turn(2.0, 1.0, 8e6), "vlora linear": turn(3.0, 2.0, 30e6)},
        {"copy 2": turn(4.0, 1.0, 8e6), "vlora linear": turn(4.8, 1.5, 50e6), "mergekit linear": other},
        {"copy 2": turn(3.0, 1.0, 8e6), "vlora linear": turn(3.0, 1.9, 40e6)},
    ]
    into = {"vlora_into": turn(1.5, 2.0, 60e6), "peft_into": turn(9.0, 8.0, 2.5e9)}
    matching = {f"linear_family gradient_matching {rank}": turn(0.5, 1.7) for rank in ("keep", "lossless")}
    phases = turn(2.0, 3.0, phases={"read": {"cpu": 1.25, "calls": 9}, "elect": {"cpu": 1.5, "calls": 3}})
    return {
        **{f"round_{number}": {**common, "rounds": [found]} for number, found in enumerate(rounds)},
        "mergekit_ties": {**common, "rounds": [{"mergekit ties": turn(200.0, 220.0, 9e9)}]},
        "phases_ties": {**common, "layers": 6, "rounds": [{"phases ties": phases}]},
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
    expected = [
        "3",
        "3.0 (3.0 to 4.8)",
        "1.9 (1.5 to 2.0)",
        "40",
        "1.20 (1.00 to 1.50)",
        "1.90 (1.50 to 2.00)",
    ]
    assert cells(text, "vlora, linear, 2 models") == expected
    copy = ["3", "3.0 (2.0 to 4.0)", "1.0 (1.0 to 1.0)", "8", "", ""]
    assert cells(text, "plain copy, 2 models") == copy
    # of the one round with mergekit, less the 4 s of its start-up: 5.4 / 4.0 and 7.0 / 1.0
    name = "mergekit 0.1.5, {}, less its start-up"
    assert cells(text, name.format("linear, 2 models")) == ["1", "5.4", "7.0", "6500", "1.35", "7.00"]
    assert cells(text, name.format("TIES, base + 2")) == ["1", "200.0", "220.0", "9000", "", ""]
    assert cells(text, "vlora, TIES, base + 2") == ["—"] * 6


def test_a_round_has_its_load(records):
    turns = {who: turn(wall, 1.0, load_before=load) for who, wall, load in (
        ("copy 2", 1.0, 0.1), ("vlora linear", 2.0, 1.5), ("copy 3", 3.0, 0.2), ("vlora task_arithmetic", 4.0, 0.3),
        ("vlora ties", 5.0, 0.4),
    )}  # fmt: skip
    text = table.round_table({"into_base": {}, "round_4": {"rounds": [turns]}})
    assert cells(text, "4") == ["0.1 to 1.5", "1.0", "2.0", "3.0", "4.0", "5.0"]


def test_phases_are_ordered_by_their_time(records):
    text = table.phase_table(records)
    assert (
        text.index("| elect | 1.50 |") < text.index("| read | 1.25 |") < text.index("| wall clock | 2.00 |")
    )
    assert text.startswith("Models of 6 layers.")
    assert table.phase_table({}) == "Not measured.\n"


def test_nested_phases_count_once_and_whole_ones_keep_what_is_inside():
    phases = Phases()
    burn = phases.wrap("inner", lambda: sum(range(100_000)))
    phases.wrap("outer", lambda: [burn(), burn()])()
    phases.wrap("identities", burn)()
    assert {name: found["calls"] for name, found in phases.spent.items()} == {
        "inner": 2,
        "outer": 1,
        "identities": 1,
    }
    assert phases.spent["outer"]["cpu"] < phases.spent["inner"]["cpu"]


def test_every_competitor_is_in_every_round_and_the_order_moves_on():
    rounds = [run.UNITS[f"round_{number}"] for number in range(run.ROUNDS)]
    assert all(competitor in found for found in rounds for competitor in run.COMPETITORS)
    assert len({str(found[0]) for found in rounds}) >= 5
    assert sum(["mergekit", "linear"] in found for found in rounds) == 3


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


def test_every_phase_names_functions_that_exist():
    missing = [
        f"{phase}: {owner.__name__}.{name}"
        for phase, places in phase_places().items()
        for owner, name in places
        if not hasattr(owner, name)
    ]
    assert not missing
