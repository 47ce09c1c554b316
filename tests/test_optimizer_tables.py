"""The tables of ``benchmarks/optimizer`` on made-up results whose numbers are worked out by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.optimizer import table
from benchmarks.readme_table import read_results, replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "optimizer"


@pytest.fixture
def records() -> dict:
    common = {
        "threads": 1,
        "hardware": {"cpu": "model", "cores": 2, "load": 0.5},
        "versions": {"torch": "2"},
    }
    cpu = {"randn": [0.010, 0.012], "adamw_foreach": [0.020, 0.024], "vlora_foreach": [0.040, 0.072]}
    seconds = {name: {"cpu": some, "wall": [2 * x for x in some]} for name, some in cpu.items()}
    steps = {
        "adamw": {"cpu": [0.1] * 10, "wall": [0.1] * 10},
        "ivon": {"cpu": [0.101 + 0.001 * i for i in range(10)], "wall": [0.1] * 10},
        "ivon_auto": {"cpu": [0.2] * 10, "wall": [0.2] * 10},
    }
    model = {"entries": 1234, "tensors": 7, "batch": 16, "tokens": 64, "seconds": steps}
    return {
        "time_lora": {**common, "output": {"seconds": seconds}},
        "memory_lora_vlora_foreach": {**common, "output": {"peak_bytes": 505, "trainable_bytes": 100}},
        "minilm": {**common, "output": model},
    }


@pytest.fixture
def line(records) -> Callable[..., list[str]]:
    """Cells after the first of the only line of the lora table or the memory table that starts with a name."""

    def find(text: str, name: str) -> list[str]:
        rows = [[cell.strip() for cell in x.split("|")[1:-1]] for x in text.splitlines()]
        (found,) = [cells for cells in rows if cells[:1] == [name]]
        return found[1:]

    return find


def test_times_are_medians_and_ratios_are_paired_by_round(records, line):
    text = table.time_table(records, "lora")
    # rounds: 40 / 20 = 2 and 72 / 24 = 3; aims 10 + 40 = 50 and 12 + 48 = 60, so .8 and 1.2
    assert line(text, "vlora, default path") == ["56.0", "40.0 to 72.0", "112.0", "2.50", "1.00"]
    assert line(text, "AdamW, foreach")[3:] == ["1.00", ""]
    assert line(text, "ivon-opt 0.1.3") == ["—"] * 5


def test_memory_is_in_copies_of_the_trainables(records, line):
    assert line(table.memory_table(records), "vlora, default path") == ["5.0", "—", "—"]
    assert "ivon-opt" not in table.memory_table(records)


def test_the_whole_step_is_a_median_of_pairs(records, line):
    # ratios 1.01 ... 1.10: median 1.055; of ten values the second and the ninth hold the median with 97.9 %
    text = table.minilm_text(records)
    assert line(text, "vlora, default path") == ["105.5", "1.055 [1.020, 1.090]"]
    assert line(text, "vlora, `IVON.auto`") == ["200.0", "2.000 [2.000, 2.000]"]


@pytest.mark.parametrize(("n", "low"), [(5, 0), (6, 0), (9, 1), (10, 1), (60, 21)])
def test_order_intervals_are_those_of_the_books(n, low):
    assert table.order_interval(range(n)) == (low, n - 1 - low)


def test_nothing_measured_makes_dashes(tmp_path):
    text = table.block(read_results(tmp_path))
    assert text.startswith("From 0 result files.") and text.count("—") == 3 * 9 * 5
    assert text.rstrip().endswith("Not measured.")


def test_the_block_is_replaced_between_its_markers_only(tmp_path, records):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    for name, record in records.items():
        (results / f"{name}.json").write_text(json.dumps(record))
    readme.write_text("before\n<!-- table:start -->\nformer\n<!-- table:end -->\nafter\n")
    table.main(["--results", str(results), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n<!-- table:start -->\nFrom 3 result files; threads: 1; cpu model")
    assert text.endswith("<!-- table:end -->\nafter\n") and "former" not in text


def test_the_readme_holds_the_tables_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(read_results(FOLDER / "results"))), (
        "run benchmarks/optimizer/table.py"
    )


def test_committed_results_name_no_folder_of_a_machine():
    for path in (FOLDER / "results").glob("*.json"):
        assert '"/' not in path.read_text(encoding="utf-8"), path.name
