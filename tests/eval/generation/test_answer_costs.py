"""Costs of answers: counted by a hook, merged over chunks by hand, kept through a kill, and told in the report."""

import json
from dataclasses import replace

import pytest
import torch
from test_answer_estimators import record
from torch import nn

from vlora.eval.costs import Spent
from vlora.eval.generation.costs import Meter, answer_costs, merged
from vlora.eval.generation.store import AnswerStore


class Reads(nn.Module):
    def forward(self, input_ids):
        return input_ids


def test_the_meter_counts_tokens_of_one_model_inside_the_block():
    meter, model, other = Meter(), Reads(), Reads()
    with meter.running("samples", model) as spent:
        model(input_ids=torch.zeros(2, 5))
        other(input_ids=torch.zeros(9, 9))
        spent.add(2)
    model(input_ids=torch.zeros(7, 7))
    with meter.running("samples", model):
        model(input_ids=torch.zeros(1, 3))
    (passes, tokens, seconds) = meter.take()["samples"]
    assert (passes, tokens) == (2, 13) and seconds > 0
    assert meter.take() == {}


def test_a_judge_is_counted_by_what_it_says_of_itself():
    class Judge:
        judged, tokens = 5, 50

    meter, judge = Meter(), Judge()
    with meter.judging(judge):
        judge.judged, judge.tokens = 8, 90
    with meter.judging(None):
        pass
    assert meter.take()["judge"][:2] == [3, 40]


def test_chunks_count_for_the_answers_that_were_kept_from_them():
    chunks = [
        (["a", "b"], {"answer": [2, 20, 2.0]}),
        (["c", "d"], {"answer": [2, 40, 4.0]}),  # of these d was lost
        (["d", "e"], {"answer": [2, 10, 1.0], "p_true": [2, 8, 0.5]}),
        (["z"], {"answer": [1, 99, 9.0]}),  # nothing of it was kept
    ]
    found = merged(chunks, ["a", "b", "c", "d", "e"])
    assert found == {"answer": Spent(5, 50, 5.0), "p_true": Spent(2, 8, 0.5)}


def test_forwards_are_of_prompt_and_judged_answer():
    base = record()
    one = replace(base, num_tokens=7, answer=replace(base.answer, log_probs=[-1.0, -1.0, -1.0]))
    rows = answer_costs([one, one], {"answer": Spent(2, 27, 1.0), "judge": Spent(4, 60, 2.0)})
    assert rows[0] == {
        "model": one.model, "estimator": "answer", "passes": 1, "forwards": 1.5, "tokens": 27, "seconds": 1.0
    }  # fmt: skip
    assert rows[1]["forwards"] is None and rows[1]["passes"] == 2 and rows[1]["tokens"] == 60


def test_costs_are_read_back_behind_a_line_that_was_cut_off(tmp_path):
    store, key = AnswerStore(tmp_path / "o"), "k" * 32
    store.append("m", key, [replace(record(), item="a")], {"answer": [1, 9, 0.5]})
    [file] = store.path.glob("*.costs.jsonl")
    with open(file, "a") as torn:
        torn.write('{"items": ["b"')
    store.append("m", key, [replace(record(), item="b")], {"answer": [1, 8, 0.25]})
    assert store.costs("m", key) == [(["a"], {"answer": [1, 9, 0.5]}), (["b"], {"answer": [1, 8, 0.25]})]
    assert store.costs("other", key) == []
    store.remove({"m": key})
    assert not store.path.exists()


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"items": 1, "cost": {}}', json.dumps({"items": [], "cost": 3})]
)
def test_a_line_that_says_nothing_is_left_out(tmp_path, line):
    store = AnswerStore(tmp_path / "o")
    store.append("m", "k" * 32, [record()], {"answer": [1, 9, 0.5]})
    [file] = store.path.glob("*.costs.jsonl")
    with open(file, "a") as more:
        more.write(line + "\n")
    assert len(store.costs("m", "k" * 32)) == 1
