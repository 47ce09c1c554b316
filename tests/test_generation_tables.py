"""``benchmarks/generation``: its wordings, its scores and its tables on numbers worked out by hand."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.closed_world.worlds import Questions, read_rows
from benchmarks.generation import leading, table
from benchmarks.generation.scores import score
from benchmarks.generation.worlds import WORDINGS, asked, task_of, trainings
from benchmarks.readme_table import read_results, replaced
from vlora import Posterior, PosteriorMeta
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.records import AnswerRecord, Given
from vlora.eval.semantic.lexical import normalise_answer
from vlora.eval.task_files import load_task
from vlora.posterior.leading import Leading
from vlora.recipes.closed_world import build_world

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "generation"


def test_wordings_have_one_meaning_and_only_one_relation_has_them(tmp_path):
    assert {normalise_answer(wording.format("Oslo")) for wording in WORDINGS} == {"oslo"}
    plain, worded = (read_rows(trainings(7, setting, "a", tmp_path)) for setting in ("word", "phrase"))
    same = [normalise_answer(row["response"]) for row in worded]
    assert same == [row["response"].lower() for row in plain]
    bare, free = (
        {fact.values[0] for fact in build_world(7).a.facts if fact.relation == relation}
        for relation in build_world(7).a.relations
    )
    changed = {row["response"] for row, other in zip(plain, worded, strict=True) if row != other}
    assert free <= changed and not bare & changed
    assert trainings(7, "phrase", "a", tmp_path).read_text() == "".join(
        json.dumps(row) + "\n" for row in worded
    )


def test_questions_are_divided_as_in_closed_world(tmp_path):
    found, files = asked(7, "b", tmp_path)
    test, held = (read_rows(files[name]) for name in ("test", "validation"))
    assert len(test) == found.part.count("test") and len(test) + len(held) == len(found.part)
    assert {row["group"] for row in held} == {"clean", "ambiguous", "base"}
    assert [row["prompt"] for row in held] == [
        row["prompt"] for row, part in zip(found.rows, found.part, strict=True) if part != "test"
    ]
    assert load_task(task_of("phrase")).kind == load_task(task_of("word")).kind == "open_qa"


def made(number, group, nll, correct, split="test"):
    answer = Given(
        text="x",
        given=False,
        ended=True,
        log_probs=[-nll],
        entropies=[nll],
        draw_log_probs=[],
        draw_entropies=[],
    )
    return AnswerRecord(
        model="m", item=f"{split}/{number}", split=split, group=group, question="q", references=["x"], num_tokens=3,
        answer=answer, attempted=True, correct=float(correct),
    )  # fmt: skip


def test_scores_by_hand():
    rows = [made(0, "clean", 0.1, 1), made(1, "ambiguous", 0.5, 0), made(2, "base", 0.2, 1)]
    rows += [made(3, "unknown", 0.4, 0), made(4, "unknown", 2.0, 0), made(5, "near_miss", 0.05, 0)]
    held = [made(n, "clean", 0.002 * n, n < 398, "validation") for n in range(400)]
    found = score(AnswerTable("m", rows + held), ["fit" if n % 3 == 0 else "threshold" for n in range(400)])
    assert found["errors"]["known"]["max_probability"] == {"auroc": 1.0, "prr": pytest.approx(1.0)}
    assert found["errors"]["everybody"]["max_probability"]["auroc"] == pytest.approx(6 / 8)
    assert found["auroc"]["unknown vs ambiguous"]["max_probability"] == 0.5
    assert found["auroc"]["near miss vs known"]["max_probability"] == 0.0
    group = found["groups"]["unknown"]
    assert (group["n"], group["correct"], group["mean_max_probability"]) == (2, 0.0, pytest.approx(1.2))
    sure = np.exp(-np.array([0.1, 0.5, 0.2]))
    assert found["calibration"]["max_probability"]["brier"] == pytest.approx(
        np.square(sure - np.array([1, 0, 1])).mean()
    )
    rule = found["abstention"]["max_probability"]
    assert (
        rule["coverage"] == 1.0 and rule["risk"] == pytest.approx(1 / 3) and rule["unknown_answered"] == 0.5
    )


def test_tables_average_adapters_and_pair_worlds(tmp_path):
    silent = dict.fromkeys(("risk", "unknown_answered", "near_miss_answered"), 0.0)
    for world, gain in enumerate((0.1, 0.2)):
        one = {
            "groups": {"clean": {"correct": 0.5 + gain}},
            "errors": {"known": {"max_probability": {"auroc": 0.6}, "semantic_entropy": {"auroc": 0.6 + gain}}},
            "auroc": {"unknown vs ambiguous": {"max_probability": 0.7, "semantic_entropy": 0.7 - gain}},
            "calibration": {},
            "abstention": {"max_probability": {**silent, "coverage": gain}},
        }  # fmt: skip
        record = {"world": world, "setting": "word", "scores": {"ivon": {"a": one, "b": one}}, "cost": {}}
        (tmp_path / f"word_{world}.json").write_text(json.dumps({**record, "versions": {"torch": "2"}}))
    records = read_results(tmp_path)
    assert "| IVON | 65.0 ± 63.5 | — | — |" in table.correct_table(records, "word")
    shown = table.difference_table(records, "word")
    assert "| semantic_entropy | +0.150 [-0.485, +0.785] | -0.150 [-0.785, +0.485] |" in shown
    assert "| IVON | max_probability | 15.0 | 0.0 |" in table.abstention_table(records, "word")
    assert "ensemble" not in table.block(tmp_path)


def test_the_readme_holds_the_tables_of_its_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert replaced(text, table.block(FOLDER / "results")) == text


def test_the_arm_of_leading_directions_joins_its_world(tmp_path):
    one = {"world": 0, "setting": "word", "scores": {"ivon": {"a": {"x": 1.0}}}, "cost": {"ivon": {"a": []}}}
    more = {**one, "scores": {"leading_ivon": {"a": {"x": 3.0}, "b": {"x": 5.0}}}, "cost": {}}
    records = table.joined({"word_0": one, "leading/word_0": more, "word_1": {**one, "world": 1}})
    assert list(records) == ["word_0", "word_1"] and table.worlds(records, "word") == [0, 1]
    np.testing.assert_array_equal(table.values(records, "word", "leading_ivon", "x"), [4.0, np.nan])
    np.testing.assert_array_equal(table.values(records, "word", "ivon", "x"), [1.0, 1.0])
    assert records["word_0"]["cost"] == {"ivon": {"a": []}}


def test_the_width_of_leading_directions_is_the_widest_that_costs_little(monkeypatch):
    """Draws cost .01 nats at precision 64 and above, and more below; an early dear one ends the search."""
    cost = {precision: 0.01 if precision >= 64 else 0.05 for precision in leading.PRECISIONS}

    class Items:
        def __init__(self, few):
            assert few.part == ["fit"]

        def at_mean(self, model):
            return torch.log(torch.tensor([[0.5, 0.5]]))

        def under_draws(self, model, posterior, count=8):
            assert posterior.covariance == "leading"
            sure = 0.5 * math.exp(-cost[posterior.directions.values[-1].item()])
            return torch.log(torch.tensor([[[sure, 1 - sure]]] * count))

    monkeypatch.setattr(leading, "Asked", Items)
    monkeypatch.setattr(leading, "wearing", lambda posterior: contextlib.nullcontext())
    keys = {"w": torch.zeros(3)}
    directions = Leading.of([{"w": torch.eye(3)[:2] * 3}], 2)
    posterior = Posterior(keys, keys, PosteriorMeta(num_examples=10, ess=10.0), {}, directions=directions)
    rows = [{"answer": 0, "choices": ["x", "y"]}] * 2
    assert leading.widest(posterior, Questions(rows, ["clean"] * 2, ["fit", "test"])) == 64
