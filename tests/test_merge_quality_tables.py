"""``benchmarks/merge_quality``: its numbers by hand, and the README holds what the files say."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.merge_quality import pairs, pairs_tables, set_tables, table
from benchmarks.merge_quality.change import CHANGE, EQUAL
from benchmarks.merge_quality.heads import CONTROL, HEADS_ARM
from benchmarks.merge_quality.heads_tables import change_differences, change_scores, heads_scores
from benchmarks.merge_quality.records import OURS, differences, value
from benchmarks.readme_table import replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "merge_quality"


def scores(*accuracy: float, nll: float) -> dict:
    names = ("sst2", "trec")
    return {
        n: {"accuracy": a, "nll": nll, "ece": 0.1, "nll_tempered": nll}
        for n, a in zip(names, accuracy, strict=True)
    }


def record(seed: int) -> dict:
    """Ours is .04 better on sst2 and .02 on trec than the sum at its default, and level with its best."""
    ours, plain = scores(0.84, 0.62 + 0.1 * seed, nll=0.4), scores(0.8, 0.6 + 0.1 * seed, nll=0.5)
    rows = [{"measured": m, "kronecker": k, "distance": -k} for m, k in ((0.1, 1.0), (0.2, 2.0), (0.3, 3.0))]
    return {
        "family": "mixed", "count": 4, "gauge": "shared", "optimizer": "ivon", "seed": seed, "tasks": ["sst2", "trec"],
        "unseen": [], "conflict": rows, "cpu_seconds": 60.0, "versions": {"variational-lora": "0.1.0"},
        "arms": {
            "task arithmetic (sum)": {"default": plain, "best": ours, "scalar": 0.7},
            OURS: {"default": ours, "best": ours, "scalar": 1.0},
            "G, tau 1": {"default": plain},
            "no adapter": {"default": plain},
        },
    }  # fmt: skip


def test_means_and_the_worst_task_are_over_the_tasks_of_a_set():
    one = record(0)
    assert value(one, OURS, "default", "accuracy") == pytest.approx(0.73)
    assert value(one, OURS, "default", "worst") == pytest.approx(0.62)
    assert np.isnan(value(one, "no adapter", "best", "nll"))
    assert np.isnan(value(one, "TIES", "default", "nll"))
    assert np.isnan(value(one, OURS, "default", "nll", "unseen"))


def test_differences_are_paired_by_set():
    records = [record(0), record(1)]
    assert differences(records, "task arithmetic (sum)", "default", "accuracy") == pytest.approx([0.03, 0.03])
    assert differences(records, "task arithmetic (sum)", "default", "worst") == pytest.approx([0.02, 0.02])
    lines = set_tables.pairs_table(records).splitlines()
    assert lines[2].startswith(
        "| task arithmetic (sum) | default | +3.0 [+3.0, +3.0] | +2.0 [+2.0, +2.0] | -0.100 ["
    )
    assert "| task arithmetic (sum) | best | +0.0 [+0.0, +0.0] |" in lines[3]


def pair(seed: int, number: int) -> dict:
    """Ours is better than the sum in NLL by .1 for three pairs of tasks and worse by .02 for the others."""
    tasks = [f"task {number}", "other"]

    def scored(nll: float) -> dict:
        return {name: {"accuracy": 0.8 + 0.01 * seed, "nll": nll, "ece": 0.1} for name in tasks}

    ours = scored(0.4 if number < 3 else 0.52)
    return {
        "gauge": "independent", "seed": seed, "tasks": tasks, "unseen": [],
        "arms": {OURS: {"default": ours, "best": ours, "scalar": 1.0}, "sum": {"default": scored(0.5), "best": ours}},
    }  # fmt: skip


def test_pairs_are_averaged_before_an_interval_is_taken():
    records = [pair(seed, number) for seed in (0, 1) for number in range(6)]
    assert [len(one) for one in pairs_tables.sets_of([*records, pair(2, 0)])] == [6, 6]
    lines = pairs_tables.pair_differences(records).splitlines()
    assert lines[2].startswith(
        "| sum | default | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | -0.040 [-0.040, -0.040] |"
    )
    assert lines[2].endswith("| 3 of 6 |") and lines[3].endswith("| 0 of 6 |")
    scores = pairs_tables.pair_scores(records).splitlines()
    assert scores[2].startswith(f"| {OURS} | 80.5 | 80.5 | 0.460 | 0.100 |") and scores[2].endswith("| 1 |")


def test_every_pair_of_four_is_merged_with_every_start_and_seed():
    found = pairs.pairs([0, 1, 2])
    assert len({one.name for one in found}) == len(found) == 2 * 2 * 3 * 6
    assert {one.tasks for one in found if one.family == "mixed"} >= {("sst2", "trec"), ("subj", "fdu_books")}
    assert {arm.count for arm in pairs.ARMS.values()} == {None, 2}


def test_conflict_is_a_rank_correlation():
    text = table.conflict_table([record(0), record(1)])
    assert text.splitlines()[3].endswith("| +1.00 [+1.00, +1.00] | — | — | -1.00 [-1.00, -1.00] |")


def test_the_readme_holds_the_tables_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(FOLDER / "results")), "run benchmarks.merge_quality.table"


def test_results_hold_no_path_of_the_machine():
    for path in FOLDER.glob("results/*/*.json"):
        found = json.dumps(json.loads(path.read_text(encoding="utf-8")))
        assert '"/' not in found, path.name


def by_arm(seed: int, **nll: float) -> dict:
    arms = {
        name: {"default": {"a": {"accuracy": 0.5, "nll": value, "ece": 0.1}}} for name, value in nll.items()
    }
    names = {"control": CONTROL, "heads": HEADS_ARM, "change": CHANGE, "equal": EQUAL}
    arms = {names.get(name, name): scores for name, scores in arms.items()}
    return {
        "family": "mixed",
        "count": 4,
        "gauge": "shared",
        "seed": seed,
        "tasks": ["a"],
        "unseen": [],
        "arms": arms,
    }


def test_heads_are_compared_with_one_gram_of_the_same_pass():
    rows = heads_scores([by_arm(0, control=0.5, heads=0.4), by_arm(1, control=0.3, heads=0.4)]).splitlines()
    assert rows[2] == "| one Gram | 50.0 | 50.0 | 0.400 | — |"
    assert rows[3].endswith("| 0.400 | 1 of 2 |")


def test_votes_by_change_are_compared_within_a_kind_of_set():
    records = [by_arm(0, equal=0.4, change=0.45), by_arm(1, equal=0.3, change=0.33)]
    assert change_scores(records).splitlines()[3] == (
        "| four different tasks (2) | gradient matching, one pass, votes by change | 50.0 | 50.0 | 0.390 | — | — |"
    )
    rows = change_differences(records).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith(
        "| four different tasks (2) | gradient matching, one pass, equal votes | +0.0 ["
    )
    assert "| +0.040 [" in rows[2]
