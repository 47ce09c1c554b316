"""The tables of ``benchmarks/posterior_quality``: numbers by hand, and the README holds what the files say."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.posterior_quality import table
from benchmarks.posterior_quality.units import same_rate_units
from benchmarks.readme_table import replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "posterior_quality"


def record(task: str, arm: str, seed: int, **nll: float) -> dict:
    """NLL per predictor; tempered is .1 lower."""
    scores = {name: {"raw": {"nll": v}, "tempered": {"nll": v - 0.1}} for name, v in nll.items()}
    facts = {"lr": 1e-3, "std_quantiles": [0.01, 0.02, 0.03], "scale": 1.4, "rank_correlation": 0.9}
    versions = {"variational-lora": "0.1.0"}
    return {
        "task": task, "arm": arm, "seed": seed, "scores": scores, "facts": facts, "versions": versions, "seconds": 60.0,
    }  # fmt: skip


@pytest.fixture
def records() -> list[dict]:
    """Two tasks, two seeds; IVON's draws are .02 (sst2) and .04 (trec) better than AdamW in every seed."""
    found = []
    for task, gain in (("sst2", 0.02), ("trec", 0.04)):
        for seed in (0, 1):
            found.append(record(task, "adamw", seed, mean=0.5 + 0.1 * seed))
            found.append(
                record(task, "ivon_auto", seed, mean=0.5 + 0.1 * seed, draws=0.5 + 0.1 * seed - gain)
            )
    return found


def test_differences_are_paired_by_seed_and_averaged_by_task(records):
    pair = table.PAIRS["IVON auto draws − AdamW"]
    found = table.task_differences(records, pair, "nll", ["sst2", "trec"])
    assert found == pytest.approx([-0.02, -0.04])
    # mean -.03, s.e. .01, t(.975, 1) = 12.71
    assert table.interval(found, 3) == "-0.030 [-0.157, +0.097]"
    tempered = ("IVON auto, 8 draws", "AdamW + temperature")
    assert table.task_differences(records, tempered, "nll", ["sst2"]) == pytest.approx([0.08])


def test_what_has_no_file_is_a_dash(records):
    assert np.isnan(table.value(records, "sst2", 0, "MC dropout, 8", "nll"))
    rows = {line.split(" | ")[0][2:]: line for line in table.task_table(records, "nll", 3).splitlines()[2:]}
    assert rows["MC dropout, 8"] == "| MC dropout, 8 | — | — |"
    assert rows["AdamW"] == "| AdamW | 0.550 | 0.550 |"
    assert rows["IVON auto, 8 draws"] == "| IVON auto, 8 draws | 0.530 | 0.510 |"


def test_arms_at_ivons_rate_stand_where_both_have_one_rate_for_the_seeds_that_they_have(records):
    """On sst2 the rates differ and seed 0 was run again; trec has one rate, and its own runs count as both."""
    found = [*records, record("sst2", "adamw_same", 0, mean=0.4)]
    row = "AdamW at IVON's rate"
    values = [table.value(found, task, seed, row, "nll") for task in ("sst2", "trec") for seed in (0, 1)]
    assert values == pytest.approx([0.4, np.nan, 0.5, np.nan], nan_ok=True)


def test_units_at_ivons_rate_are_those_of_tasks_whose_rates_differ():
    units = same_rate_units(["fdu_books", "trec"], [0])
    assert {unit["task"] for unit in units} == {"fdu_books"}  # trec has 3e-3 for both
    assert {unit["given"]["lr"] for unit in units} == {1e-3}
    assert [(unit["arm"], unit["seed"], len(unit["given"])) for unit in units] == [
        ("adamw_same", 0, 1), ("adamw_same_laplace", 0, 1), *(("adamw_same", seed, 2) for seed in (1, 2, 3)),
    ]  # fmt: skip


def test_noisy_tasks_come_first(records):
    assert table.tasks_of([*records, record("fdu_books", "adamw", 0, mean=1.0)]) == [
        "sst2",
        "fdu_books",
        "trec",
    ]


def test_the_readme_holds_the_tables_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(FOLDER / "results")), "run benchmarks.posterior_quality.table"


def test_results_hold_no_path_of_the_machine():
    for path in FOLDER.glob("results/*/*.json"):
        found = json.dumps(json.loads(path.read_text(encoding="utf-8")))
        assert '"/' not in found, path.name
