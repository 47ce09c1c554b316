"""Counted warnings about the items of an evaluation: what was cut and what repeats, in one line and in the results."""

import json
import logging

import eval_tiny
import eval_world
import pytest
from report_fixture import make_results

from vlora.config import load_config
from vlora.eval.calibrate import run_calibration
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.run import run_generation
from vlora.eval.item_warnings import item_notes, say_repeated, say_truncated
from vlora.eval.predict import Predictor
from vlora.eval.report import render_report
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.eval.score_labels import LabelScorer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return eval_world.build(tmp_path_factory.mktemp("world"))


def said(caplog, word):
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_counts_are_by_set_and_silent_without_any(caplog):
    assert say_truncated(["test", "test", "validation"], [False] * 3, "causal_lm", 8) == {
        "test": 0,
        "validation": 0,
    }
    assert not caplog.records
    found = say_truncated(["test", "test", "validation", "far"], [True, False, True, False], "causal_lm", 8)
    assert found == {"test": 1, "validation": 1, "far": 0}
    (message,) = said(caplog, "cut to")
    assert message.startswith(
        "cut to data.max_length = 8 tokens (or what the model takes): 1 of 2 test, 1 of 1 valid"
    )
    assert message.endswith("raise data.max_length, or give shorter prompts (fewer examples)")


def test_an_evaluation_says_what_it_cut_and_keeps_the_number(world, tmp_path, caplog):
    """Prompts have 5 to 11 tokens with BOS, choices 1 or 2."""
    settings = {**eval_world.config(world, tmp_path / "a").data.__dict__, "max_length": 8}
    config = eval_world.config(world, tmp_path / "a", model="base", num_samples=0, data=settings)
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    longest = [1 + len(row["question"].split()) + max(len(c.split()) for c in row["choices"]) for row in rows]
    wanted = sum(length > 8 for length in longest)
    assert 0 < wanted < 24
    results = read_results(run_eval(config) / "results.json")
    assert results["truncated"]["test"] == wanted and set(results["truncated"]) == {
        "test",
        "validation",
        "unknown",
    }
    (message,) = said(caplog, "cut to")
    assert f"{wanted} of 24 test, " in message and "the front of their prompts is missing" in message
    caplog.clear()
    again = eval_world.config(
        world, tmp_path / "a", model="base", num_samples=0, data=settings, overwrite=True
    )
    assert (
        read_results(run_eval(again) / "results.json")["truncated"] == results["truncated"]
    )  # from the store
    assert len(said(caplog, "cut to")) == 1
    whole = eval_world.config(world, tmp_path / "b", model="base", num_samples=0)
    caplog.clear()
    assert set(read_results(run_eval(whole) / "results.json")["truncated"].values()) == {0}
    assert not said(caplog, "cut to")


def test_a_store_that_does_not_say_asks_the_tokenizer(world, tmp_path):
    settings = {**eval_world.config(world, tmp_path).data.__dict__, "max_length": 8}
    changes = {"model": "base", "num_samples": 0, "data": settings, "store": str(tmp_path / "store")}
    first = read_results(run_eval(eval_world.config(world, tmp_path / "a", **changes)) / "results.json")
    (file,) = (tmp_path / "store").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[1:]:
        for layout in line["layout"]:
            del layout["truncated"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = read_results(run_eval(eval_world.config(world, tmp_path / "b", **changes)) / "results.json")
    assert again["truncated"] == first["truncated"] and first["truncated"]["test"] > 0


def test_calibration_and_prediction_say_it_once(world, tmp_path, caplog):
    from shutil import copytree

    copytree(world / "first", tmp_path / "first")
    settings = {**eval_world.config(world, tmp_path).data.__dict__, "max_length": 8}
    run_calibration(
        eval_world.config(world, tmp_path / "c", model=str(tmp_path / "first"), num_samples=2, data=settings)
    )
    (message,) = said(caplog, "cut to")
    assert "of 12 validation" in message and "of 24 test" in message and "of 10 unknown" in message
    caplog.clear()
    predictor = Predictor.from_pretrained(tmp_path / "first", base_model=str(world / "base"))
    rows = [{"question": "Q " + "w1 " * size + "A", "choices": ["red", "blue"]} for size in (1, 9)]
    predictor.predict(rows)
    (message,) = said(caplog, "cut to")
    assert "1 of 2 data items" in message and "run vlora calibrate with a larger data.max_length" in message


def test_classification_counts_pairs_that_lost_their_end():
    from vlora.data import Example

    texts = ["w1 w2", "w1 w2 w3", "w1 w2 w3 w4 w5"]  # with BOS 3, 4, 6 tokens; one more of the pair
    examples = [Example(item=str(i), text=text) for i, text in enumerate(texts)]
    sizes = {"num_labels": 2, "max_tokens": 99, "max_rows": 9}
    assert LabelScorer(examples, eval_tiny.tokenizer(), max_length=4, **sizes).truncated == [
        False,
        False,
        True,
    ]
    pairs = [Example(item=str(i), text=text, text_pair="red") for i, text in enumerate(texts)]
    assert LabelScorer(pairs, eval_tiny.tokenizer(), max_length=4, **sizes).truncated == [False, True, True]


@pytest.mark.parametrize("given", [False, True])
def test_answers_say_which_prompts_gave_way(world, tmp_path, caplog, given):
    """The model takes 64 tokens and data.max_length 12: with 4 for the answer, 8 for a prompt; 12 with a given one."""
    task = tmp_path / "task.yaml"
    form = "given_answers\nresponse: said" if given else "open_qa"
    task.write_text(f"title: t\nkind: {form}\nprompt: '{{question}}'\nmax_new_tokens: 4\n", encoding="utf-8")
    rows = [
        {"question": "Q" + " w1" * size, "answers": ["red"], "said": "red", "label": 1} for size in (2, 8, 20)
    ]
    values = {
        **{"kind": "generation", "task": str(task), "model": "base", "base_model": str(world / "base")},
        "data": {"test": eval_world.write(tmp_path / "t.jsonl", rows), "max_length": 12},
        **{"num_samples": 0, "num_bootstrap": 20, "p_true": None, "output": str(tmp_path / "out")},
        "sampling": {"num_answers": 0 if given else 1},
    }
    output = run_generation(load_config(GenerationConfig, values))
    wanted = 1 if given else 2  # 2 + 8 + 1 tokens fit into 12 and not into 8
    assert json.loads((output / "results.json").read_text())["truncated"] == {"test": wanted}
    assert f"{wanted} of 3 test items" in said(caplog, "cut to")[0]
    page = (output / "report.html").read_text()
    assert (
        f"Cut to data.max_length = 12 tokens (or what the model takes): {wanted} of test; the front of"
        in page
    )


def test_reports_say_what_the_warnings_said():
    results = {"truncated": {"test": 3, "far": 0, "near": 1}, "repeated": 2}
    cut, repeats = item_notes({**results, "settings": {"data": {"max_length": 9}}}, "sequence_classification")
    assert cut == (
        "Cut to data.max_length = 9 tokens (or what the model takes): 3 of test, 1 of near; the end of their texts is "
        "missing."
    )
    assert repeats.startswith("2 rows repeat an earlier row of their set: intervals and tests")
    assert item_notes({"repeated": 1}, "causal_lm")[0].startswith("1 row repeats an earlier row of")
    assert item_notes({}, "x") == item_notes({"truncated": {"test": 0}, "repeated": 0}, "x") == []
    page = render_report({**make_results(), **results, "task": "multiple_choice"})
    assert 'aria-label="Notes on the data"' in page and "2 rows repeat an earlier row" in page
    assert "Notes on the data" not in render_report(make_results())


def test_repeated_rows_are_counted_by_content_and_id(caplog):
    assert say_repeated(["t/0", "t/1"], ["test", "test"], ["x", "y"], [None, None]) == 0
    assert say_repeated(["t/0", "o/0"], ["test", "far"], ["x", "x"]) == 0  # sets stand for themselves
    assert not caplog.records
    names = ["t/0", "t/1", "t/2", "t/3", "v/0", "v/1"]
    sets = ["test"] * 4 + ["validation"] * 2
    assert say_repeated(names, sets, ["a", "b", "a", "c", "d", "d"], [1, 2, 3, 2, None, None]) == 3
    (message,) = said(caplog, "repeat")
    assert message.startswith(
        "2 of 4 test, 1 of 2 validation rows repeat an earlier row (its content or its id; first"
    )
    assert "t/2 repeats t/0" in message and message.endswith("drop the repeats")


def test_an_evaluation_of_repeated_rows_says_so(world, tmp_path, caplog):
    rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
    other = [{**rows[0], "answer": 1 - rows[0]["answer"]}]  # another answer to the same question is no repeat
    test = eval_world.write(tmp_path / "t.jsonl", rows[:6] + rows[:4] + other)
    config = eval_world.config(world, tmp_path / "out", model="base", num_samples=0, data={"test": test})
    with caplog.at_level(logging.WARNING):
        run_eval(config)
    (message,) = said(caplog, "repeat")
    assert message.startswith("4 of 11 test rows repeat") and "test/6 repeats test/0" in message


def test_a_task_of_answers_counts_repeats_too(world, tmp_path, caplog):
    task = tmp_path / "task.yaml"
    task.write_text("title: t\nkind: open_qa\nprompt: '{question}'\nmax_new_tokens: 2\n", encoding="utf-8")
    rows = [{"question": f"Q w{i} A", "answers": ["red"]} for i in (1, 2, 1)]
    values = {
        **{"kind": "generation", "task": str(task), "model": "base", "base_model": str(world / "base")},
        "data": {"test": eval_world.write(tmp_path / "t.jsonl", rows)},
        **{"num_samples": 0, "num_bootstrap": 20, "p_true": None, "output": str(tmp_path / "out")},
        "sampling": {"num_answers": 0},
    }
    run_generation(load_config(GenerationConfig, values))
    assert "1 of 3 test rows repeat an earlier row" in said(caplog, "repeat")[0]
