"""``benchmarks/merge_text``: its numbers by hand, and the README holds what the files say."""

import json
from pathlib import Path

import pytest

from benchmarks.merge_text import table
from benchmarks.readme_table import replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "merge_text"


def scores(first: float, second: float = 3.0, third: float = 3.0, stories: float = 2.0) -> dict:
    return {"school": first, "wiki": second, "instructions": third, "stories": stories}


def record(seed: int) -> dict:
    own = {
        text: scores(2.5 if text == "school" else 4, 2.8, 2.8) for text in ("school", "wiki", "instructions")
    }
    ours, other = scores(3.0 + seed), scores(3.3 + seed, stories=2.5)
    return {
        "seed": seed, "single": own, "no adapter": scores(5.0), "joint training": scores(2.4), "cpu_seconds": 60.0,
        "versions": {"variational-lora": "0.1.0"},
        "arms": {
            "sum": {"default": other, "best": ours, "scalar": 0.5},
            table.OURS: {"default": ours, "best": ours, "scalar": 1.0},
        },
    }  # fmt: skip


def test_measures_by_hand():
    one = record(0)
    assert table.average(one["no adapter"]) == pytest.approx(11 / 3)
    assert table.lost(scores(3.0), one) == pytest.approx(0.5)
    assert table.single(one) == {"school": 2.5, "wiki": 2.8, "instructions": 2.8, "stories": 2.0}


def test_differences_are_paired():
    lines = table.pairs_table([record(0), record(1)]).splitlines()
    assert lines[2] == (
        "| sum | default | -0.100 [-0.100, -0.100] | -0.300 [-0.300, -0.300] | -0.500 [-0.500, -0.500] |"
    )
    assert lines[3].startswith("| sum | best | +0.000 [+0.000, +0.000]")
    rows = table.main_table([record(0), record(1)]).splitlines()
    assert rows[2].startswith("| no adapter | 5.000 | 3.000 | 3.000 | 3.667 | 2.500 | 2.000 | — |")
    assert rows[5].endswith("| 0.5 |")


def test_mixtures_count_the_adapters_that_are_used():
    arm = {"weights": {"a": 0.99, "b": 0.001}, "predicted": {"school": 0.1, "wiki": 0.3}, "test": scores(3.0)}
    text = table.mixture_table(
        [
            {
                "seeds": [0, 1],
                "arms": {"0.01": arm, "seed 1": {k: v for k, v in arm.items() if k != "predicted"}},
            }
        ]
    )
    assert text.splitlines()[2] == "| 0, 1 | mixture, 0.01 | 1 | 0.200 | 3.000 | 2.000 |"


def test_the_readme_holds_the_tables_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(FOLDER / "results")), "run benchmarks.merge_text.table"


def test_results_hold_no_path_of_the_machine():
    for path in FOLDER.glob("results/*/*.json"):
        assert '"/' not in json.dumps(json.loads(path.read_text(encoding="utf-8"))), path.name


def test_a_prior_stands_beside_the_isotropic_one_at_the_same_tau():
    arms = {}
    for tau in table.TAUS:
        arms[table.ISOTROPIC.format(tau)] = {"default": scores(3.0 + tau)}
        arms[table.OF_STORIES.format(tau)] = {"default": scores(3.3 + tau, stories=1.5)}
    for weight in table.WEIGHTS:
        arms[table.KEPT.format(weight)] = {"default": scores(3.5)}
    lines = table.prior_table([{**record(0), "arms": arms}, {**record(1), "arms": arms}]).splitlines()
    assert lines[0].endswith("| mean, minus isotropic | stories, minus isotropic |")
    assert lines[2].startswith("| no adapter | 5.000 |") and lines[3].startswith(
        "| single adapters | 2.500 |"
    )
    assert lines[5] == (
        "| prior of stories, tau 0.3 | 3.600 | 3.000 | 3.000 | 3.200 | 1.100 | 1.500 "
        "| +0.100 [+0.100, +0.100] | -0.500 [-0.500, -0.500] |"
    )
    assert lines[12].startswith("| stories kept, weight 1 | 3.500 |")
    assert "| +0.067 [" in lines[12]
