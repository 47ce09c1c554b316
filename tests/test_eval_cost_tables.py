"""The tables of ``benchmarks/eval_cost`` on made-up results whose numbers are worked out by hand, and its README."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.eval_cost import table
from benchmarks.readme_table import END, START

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "eval_cost"


def _unit(tokens: float, seconds: float, probability: float = 0.5) -> dict:
    return {
        "items": 2,
        "shots": 5,
        "block_tokens": tokens,
        "cpu_seconds": seconds,
        "choice_tokens": {"prompts": 900, "choices": 100},
        "log_probs": [[math.log(probability), math.log(1 - probability)]],
        "versions": {"torch": "2"},
        "hardware": {"machine": "x", "cores": 2, "threads": 1, "load": 0.5},
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    units = {
        "arc_easy-all-naive-1": _unit(4000, 2.0),
        "arc_easy-all-ours-1": _unit(500, 0.5, 0.502),
        "arc_easy-upper-ours-8": _unit(1500, 1.0),
    }
    for name, content in units.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_tokens_are_told_in_items_and_in_naive_passes(folder):
    lines = table.block(folder).splitlines()
    assert "| naive, 1 vector | 4,000 | 4.00 | 1.00 | 2.0 | 1.00 | – |" in lines
    assert "| vlora, 1 vector | 500 | 0.50 | 0.12 | 0.5 | 0.25 | 2e-03 |" in lines
    assert "| vlora, 8 draws, upper third adapted | 1,500 | 1.50 | 0.38 | 1.0 | 0.50 | – |" in lines
    assert lines[-1].startswith("x, 1 thread of 2 cores, load 0.5 to 0.5 ")


def test_the_linearised_variance_has_a_line_a_width_and_its_cost_in_passes(folder):
    width = {"width": 0.5, "rank_correlation": 0.9876, "ratio": 1.0204, "median_relative_error": 0.05}
    cost = {
        name: {"tokens": tokens, "cpu_seconds": seconds}
        for name, tokens, seconds in (
            ("mean", 100.0, 2.0),
            ("draws", 750.0, 12.0),
            ("linearised", 450.0, 7.0),
        )
    }
    unit = {"model": "closed_world", "task": "multiple_choice", "items": 3, "draws": 64, "outputs": 4}
    (folder / "agreement").mkdir()
    for name, covariance in (
        ("x", {"covariance": "leading"}),
        ("y", {}),
    ):  # older files have independent entries
        found = {**unit, **covariance, "widths": [width], "cost": cost}
        (folder / f"agreement/{name}.json").write_text(json.dumps(found))
    lines = table.block(folder).splitlines()
    assert "| closed world | multiple choice | leading | 0.5 | 0.988 | 1.020 | 0.050 |" in lines
    assert "| closed world | multiple choice | leading | 4 | 4.5 | 7.5 | 3.5 | 6.0 |" in lines
    assert "| closed world | multiple choice | independent | 0.5 | 0.988 | 1.020 | 0.050 |" in lines
    assert any("which know a variance to 25 %" in line for line in lines)


def test_the_readme_holds_the_tables_of_its_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = text.partition(START)[2].partition(END)[0]
    assert shown.strip() == table.block(FOLDER / "results").strip()
