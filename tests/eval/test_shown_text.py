"""What people see of an item, and the hash by which its whole text is known."""

import json

import eval_world
import torch

from vlora.config import load_config
from vlora.data import Example
from vlora.eval.config import EvalConfig
from vlora.eval.items import Item
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.rows import make_records
from vlora.eval.run import run_eval
from vlora.eval.score import Scores
from vlora.eval.task_config import expand_task


def record(example, question=None):
    scores = Scores(log_probs=torch.full((1, 2), 0.5, dtype=torch.float64).log())
    item = Item(example, "test", question=question)
    return make_records("m", [item], [{"prompt": 3, "lengths": None}], scores)[0]


def test_a_long_prompt_shows_its_end_and_a_long_text_its_beginning():
    prompt, choices = "example " * 60 + "Who is it?", ("a", "b")
    asked = record(Example(item="t/0", text=prompt, prompt=prompt, choices=choices))
    assert len(asked.text) == 201 and asked.text.startswith("…") and asked.text.endswith("example Who is it?")
    assert (
        record(Example(item="t/0", text=prompt, prompt=prompt, choices=choices), "Who is it?").text
        == "Who is it?"
    )
    plain = record(Example(item="t/0", text="First words. " + "more " * 60))
    assert plain.text.startswith("First words. ") and plain.text.endswith("…") and len(plain.text) == 201
    assert record(Example(item="t/0", text="short", prompt="short", choices=choices)).text == "short"


def test_the_hash_covers_the_whole_text_and_neither_choices_nor_answer():
    long = "x" * 500
    one = Example(item="t/0", text="A" + long, prompt="A" + long, choices=("a", "b"), label=0, response="a")
    other = Example(item="t/0", text="B" + long, prompt="B" + long, choices=("a", "b"), label=0, response="a")
    assert record(one).text == record(other).text and record(one).text_sha256 != record(other).text_sha256
    again = Example(item="t/0", text="A" + long, prompt="A" + long, choices=("c", "b"), label=1, response="b")
    assert record(one).text_sha256 == record(again).text_sha256
    pairs = [Example(item="t/0", text="a", text_pair=pair) for pair in ("b", "c")]
    assert record(pairs[0]).text_sha256 != record(pairs[1]).text_sha256


def test_mistakes_of_a_task_with_examples_show_the_question(tmp_path):
    world = eval_world.build(tmp_path / "world")
    task = tmp_path / "few.yaml"
    task.write_text(
        "title: few\nkind: multiple_choice\nprompt: '{question}'\nfewshot: {num_shots: 3}\n", encoding="utf-8"
    )
    values = {
        **{"task": str(task), "model": "base", "base_model": str(world / "base"), "num_samples": 0},
        "data": {
            "test": str(world / "test.jsonl"),
            "fewshot": str(world / "validation.jsonl"),
            "max_length": 64,
        },
        **{"num_bootstrap": 20, "output": str(tmp_path / "out")},
    }
    output = run_eval(load_config(EvalConfig, expand_task(values)))
    asked = [json.loads(line)["question"] for line in (world / "test.jsonl").read_text().splitlines()]
    assert [one.text for one in read_records(output / "records.jsonl")] == asked
    mistakes = read_results(output / "results.json")["figures"]["mistakes"]
    assert mistakes and {one["text"] for one in mistakes} <= set(asked)
    assert all(
        one.num_tokens > 20 for one in read_records(output / "records.jsonl")
    )  # the examples were there
