"""Cost per estimator: shares of batches by hand, and whole evaluations, continued ones included."""

import time

import eval_world
import pytest

from vlora.eval.costs import Spent, cost_rows, item_tokens, spent_on_scores
from vlora.eval.report import render_report
from vlora.eval.report_all import cost_table
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.eval.sink import Sink
from vlora.eval.store import ScoreFile


def test_vectors_and_items_share_a_pass_equally():
    batches = [
        (["mean", "0+", "0-"], ["a", "b"], 6.0, 60.0),
        (["1+", "1-"], ["a", "b"], 4.0, 40.0),
        (["linearised_prior_9_1.0", "linearised"], ["a"], 3.0, 30.0),
    ]
    found = spent_on_scores(batches, ["mean", "0+", "0-", "linearised_prior_9_1.0", "linearised"], ["a", "b"])
    assert found == {"mean": Spent(2, 20, 2), "draws": Spent(4, 40, 4), "linearised": Spent(2, 30, 3)}
    half = spent_on_scores(batches, ["mean", "0+", "1-"], ["a"])
    assert half == {"mean": Spent(1, 10, 1), "draws": Spent(2, 20, 2)}


def test_scores_of_all_vectors_together_are_split_among_them():
    batches = [(["mean|0+|0-"], ["a"], 3.0, 30.0), (["mean|0+|0-|1+|1-"], ["a"], 5.0, 50.0)]
    found = spent_on_scores(batches, ["mean|0+|0-"], ["a"])
    assert found == {"mean": Spent(1, 10, 1), "draws": Spent(2, 20, 2)}


def test_rows_are_per_item():
    assert item_tokens(5, [3, 1]) == 7 and item_tokens(4) == 4
    [row, other] = cost_rows("m", {"draws": Spent(8, 30, 1.5), "judge": Spent(3, 5, 1)}, 4, 20, ["judge"])
    assert row == {
        "model": "m",
        "estimator": "draws",
        "passes": 2,
        "forwards": 1.5,
        "tokens": 30,
        "seconds": 1.5,
    }
    assert other["forwards"] is None and other["passes"] == 0.75


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return eval_world.build(tmp_path_factory.mktemp("world"))


def rows(output):
    results = read_results(output / "results.json")
    return {(r["model"], r["estimator"]): r for r in results["cost"]["by_estimator"]}, results


def test_the_plain_loop_costs_what_its_passes_say(world, tmp_path):
    changes = {"model": [str(world / "first")], "scoring": "loop", "linearised": True}
    found, results = rows(run_eval(eval_world.config(world, tmp_path / "o", **changes)))
    assert set(found) == {("first", name) for name in ("mean", "draws", "linearised")}
    mean, draws, linear = (found["first", name] for name in ("mean", "draws", "linearised"))
    assert (mean["passes"], draws["passes"], linear["passes"]) == (1, 4, 1)
    assert draws["tokens"] == 4 * mean["tokens"]
    # every choice of this task is its own row at worst, so a pass reads each prompt one to three times
    assert 1 <= mean["forwards"] <= 3.5 and draws["forwards"] == pytest.approx(4 * mean["forwards"], abs=1e-3)
    assert min(r["seconds"] for r in found.values()) > 0
    assert 4 <= linear["forwards"] <= 6  # one forward and three backward passes, with padding
    assert sum(r["tokens"] for r in found.values()) == pytest.approx(results["cost"]["forward_tokens"], abs=2)
    assert sum(r["seconds"] for r in found.values()) == pytest.approx(
        results["cost"]["scoring_seconds"], abs=0.01
    )


def test_draws_side_by_side_share_and_a_store_is_counted_by_what_is_used(world, tmp_path):
    changes = {"model": [str(world / "first")], "store": str(tmp_path / "store")}
    four, _ = rows(run_eval(eval_world.config(world, tmp_path / "four", **changes)))
    eight, results = rows(run_eval(eval_world.config(world, tmp_path / "eight", num_samples=8, **changes)))
    again, _ = rows(run_eval(eval_world.config(world, tmp_path / "again", **changes)))
    assert again == four and again["first", "draws"]["passes"] == 4
    assert eight["first", "mean"] == four["first", "mean"] and eight["first", "draws"]["passes"] == 8
    assert eight["first", "draws"]["tokens"] > 1.5 * four["first", "draws"]["tokens"]
    assert "Cost per estimator" in render_report(results)
    [mean, draws] = cost_table(results)
    assert (mean["name"], draws["name"], draws["cells"][0]) == ("mean", "draws", "8.0")
    assert draws["cells"][1] == f"{eight['first', 'draws']['forwards']:.2f}"


def test_texts_share_their_pass_with_the_mean(world, tmp_path):
    texts = eval_world.write(
        tmp_path / "texts.jsonl", [{"text": f"w{n} w{n + 1} red is w3"} for n in range(6)]
    )
    changes = {
        "task": "causal_lm",
        "model": [str(world / "first")],
        "data": {"test": texts},
        "scoring": "loop",
    }
    found, _ = rows(run_eval(eval_world.config(world, tmp_path / "o", **changes)))
    mean, draws = found["first", "mean"], found["first", "draws"]
    assert (mean["passes"], draws["passes"]) == (1, 4)
    assert mean["forwards"] == 1 and draws["forwards"] == 4  # equal lengths, nothing padded or shared


def test_scores_taken_inside_a_timed_block_carry_its_time(tmp_path):
    file = ScoreFile(tmp_path / "a.jsonl", {}, {})
    sink = Sink(["a", "b"], ["mean"], file=file, layouts=[{}, {}])
    with sink.timed():
        time.sleep(0.01)
        sink.take([0], slice(None), [[[-1.0]]], tokens=4)
        sink.take([1], slice(None), [[[-2.0]]], tokens=5)
    first, second = (seconds for _, _, seconds, _ in file.batches)
    assert first >= 0.01 and second >= 0
    assert first + second <= sink.seconds + 1e-6  # how much lies after the last entry is the machine's to say
    assert ScoreFile(tmp_path / "a.jsonl", {}, {}).batches == file.batches
