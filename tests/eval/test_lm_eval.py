"""The lm-evaluation-harness model: strings averaged over draws as wholes. The plug-in runs where it is installed."""

import importlib.util
import json
import math
import sys

import eval_tiny
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from vlora.errors import ConfigError, DataError, MissingDependencyError, OutputExistsError
from vlora.eval.lm_eval_scores import log_mean_exp, posterior_predictive
from vlora.eval.records import read_records
from vlora.posterior import Posterior
from vlora.recipes.evaluate import evaluate, load_evaluation
from vlora.recipes.harness import results_lines, run_harness
from vlora.recipes.harness_task import write_harness_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HARNESS, reason="lm-evaluation-harness is not installed")


def test_log_mean_exp_is_the_mean_of_probabilities():
    values = np.log([0.5, 0.1, 0.3])
    assert log_mean_exp(values) == pytest.approx(math.log(0.3))
    assert log_mean_exp([-2000.0, -2000.0]) == -2000.0  # no underflow, and exact
    assert log_mean_exp([-2000.0, -2001.0]) == pytest.approx(-2000 + math.log((1 + math.exp(-1)) / 2))
    assert log_mean_exp([-math.inf, math.log(0.5)]) == pytest.approx(math.log(0.25))
    assert log_mean_exp([-math.inf] * 2) == -math.inf
    rng = np.random.default_rng(0)
    draws = -rng.exponential(5, size=(50, 6))
    assert all(log_mean_exp(row) >= row.mean() for row in draws)  # Jensen


def test_whole_strings_are_averaged_and_not_their_tokens():
    """Two draws that disagree inside a string: the mixture of strings is .41, that of tokens .25."""
    strings = [[(math.log(0.9 * 0.9), True)], [(math.log(0.1 * 0.1), False)]]
    ((value, greedy),) = posterior_predictive(strings)
    assert value == pytest.approx(math.log((0.81 + 0.01) / 2)) and greedy is False
    assert math.exp(value) != pytest.approx(0.5 * 0.5)


def test_bad_draws_are_one_line():
    with pytest.raises(DataError, match=r"the same strings under every draw, got \[1, 0\]"):
        posterior_predictive([[(-1.0, True)], []])
    with pytest.raises(DataError, match="of at least one draw"):
        log_mean_exp([])
    with pytest.raises(DataError, match="of at least one draw, got .*nan"):
        log_mean_exp([float("nan")])
    with pytest.raises(DataError, match="must be <= 0, got 2"):
        log_mean_exp([2.0])


def test_results_are_one_line_a_metric():
    results = {
        "t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.25, "f1_stderr,none": "N/A"}
    }
    assert results_lines({"results": results}) == "t  acc  0.5000 ± 0.1000\nt  f1  0.2500"


def test_without_the_harness_it_says_what_to_install(tmp_path, monkeypatch):
    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "vlora.eval.lm_eval", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'variational-lora\[lm-eval\]'"):
        run_harness("x", ["arc_easy"], tmp_path / "o")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny posterior and a task of two-token choices as local JSON lines."""
    folder = tmp_path_factory.mktemp("harness")
    base = eval_tiny.save_base(folder / "base", eval_tiny.llama())
    _, posterior = eval_tiny.adapted(AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM", 1)
    posterior.save_pretrained(folder / "p")
    rng = np.random.default_rng(0)
    choices = ["dark red", "blue", "dark green"]
    words = [" ".join(f"w{i}" for i in rng.integers(0, 40, 4)) for _ in range(6)]
    docs = [{"q": text, "choices": choices, "gold": i % 3} for i, text in enumerate(words)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "tasks").mkdir()
    task = {
        "task": "tiny", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "Q {{q}} A", "doc_to_choice": "choices",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (folder / "tasks/tiny.yaml").write_text(json.dumps(task))
    return folder, docs


def expected(folder, doc, choice, draws):
    """Log-probability of a choice under every draw, token by token."""
    tokens = eval_tiny.tokenizer()
    prompt = tokens(f"Q {doc['q']} A")["input_ids"]
    whole = tokens(f"Q {doc['q']} A {choice}")["input_ids"]
    posterior = Posterior.from_pretrained(folder / "p")
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "p"
    ).eval()
    found = []
    for draw in range(draws):
        with posterior.sampled(model, draw, antithetic=True), torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        found.append(sum(float(logs[t - 1, whole[t]]) for t in range(len(prompt), len(whole))))
    return found


@needs_harness
def test_a_local_task_is_scored_by_whole_strings(world, tmp_path):
    folder, docs = world
    content = run_harness(
        str(folder / "p"), ["tiny"], tmp_path / "o", include_path=folder / "tasks",
        base_model=str(folder / "base"), num_samples=4, batch_size=2, device="cpu",
    )  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "o/draws.jsonl").read_text().splitlines()]
    assert len(entries) == 18
    scores = {(e["context"], e["continuation"].strip()): e["log_probs"] for e in entries}
    right = 0
    for doc in docs:
        values = [scores[f"Q {doc['q']} A", choice] for choice in doc["choices"]]
        for choice, value in zip(doc["choices"], values, strict=True):
            assert value == pytest.approx(expected(folder, doc, choice, 4), abs=1e-4)
        right += int(np.argmax([log_mean_exp(value) for value in values])) == doc["gold"]
    assert content["results"]["tiny"]["acc,none"] == pytest.approx(right / 6)
    assert json.loads((tmp_path / "o/lm_eval.json").read_text()) == content
    with pytest.raises(OutputExistsError, match="already holds a result"):
        run_harness(str(folder / "p"), ["tiny"], tmp_path / "o")
    with pytest.raises(ConfigError, match="has no task nothing"):
        run_harness(str(folder / "p"), ["nothing"], tmp_path / "o2")


def mine(folder, **changes):
    """A task file and its rows: one solved example in front, one row without an answer."""
    lines = {
        "title": "mine", "kind": "multiple_choice", "prompt": "Q {q} A", "answer": "gold",
        "fewshot": {"num_shots": 1}, **changes,
    }  # fmt: skip
    (folder / "mine.yaml").write_text(json.dumps(lines))
    docs = [json.loads(line) for line in (folder / "docs.jsonl").read_text().splitlines()]
    rows = [*docs, {**docs[0], "q": "w1 w2", "gold": None}]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text(json.dumps({**docs[1], "q": "w3", "gold": 1}) + "\n")
    return str(folder / "mine.yaml")


def test_a_task_file_becomes_strings_for_the_harness(world, tmp_path, caplog):
    folder, docs = world
    found = write_harness_task(tmp_path, mine(folder), str(folder), None)
    assert (found["task"], found["rows"], found["unlabelled"]) == ("vlora_mine", 6, 1)
    assert found["shots"] == ["Q w3 A blue"] and "1 of 7 rows have no right answer" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "vlora_mine.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "prompt": f"Q w3 A blue\n\nQ {docs[0]['q']} A", "choices": [" dark red", " blue", " dark green"], "answer": 0
    }  # fmt: skip
    with pytest.raises(ConfigError, match="task nq_open asks for answers, not choices"):
        write_harness_task(tmp_path, "nq_open", str(folder), None)
    with pytest.raises(ConfigError, match="truthfulqa_mc2 has several right answers a row"):
        write_harness_task(tmp_path, "truthfulqa_mc2", str(folder), None)
    with pytest.raises(ConfigError, match="name tasks of the harness by --tasks, or a task file"):
        run_harness("x", [], tmp_path / "o")
    with pytest.raises(ConfigError, match="data and fewshot belong to a task file"):
        run_harness("x", ["arc_easy"], tmp_path / "o", data="x")


@needs_harness
def test_the_harness_scores_a_task_file_as_vlora_eval_does(world, tmp_path):
    folder, docs = world
    name = mine(folder)
    content = run_harness(
        str(folder / "p"), [], tmp_path / "o", task=name, data=str(folder), base_model=str(folder / "base"),
        num_samples=4, batch_size=3, device="cpu",
    )  # fmt: skip
    assert content["vlora_task"]["rows"] == 6 and "vlora_mine" in content["results"]
    entries = [json.loads(line) for line in (tmp_path / "o/draws.jsonl").read_text().splitlines()]
    values = {
        "model": str(folder / "p"), "base_model": str(folder / "base"), "task": name, "data": str(folder),
        "num_samples": 4, "num_bootstrap": 20, "output": str(tmp_path / "e"),
    }  # fmt: skip
    records = read_records(evaluate(load_evaluation(values)) / "records.jsonl")[:6]
    for number, record in enumerate(records):
        said = np.array([e["log_probs"] for e in entries[3 * number : 3 * number + 3]]).T
        normalised = said - np.logaddexp.reduce(said, axis=1, keepdims=True)
        assert record.sample_log_probs == pytest.approx(normalised, abs=1e-4)


@needs_harness
def test_texts_longer_than_the_window_and_the_cache(world):
    from lm_eval.api.instance import Instance

    from vlora.eval.lm_eval import VloraLM

    folder, _ = world
    arguments = {"base_model": str(folder / "base"), "batch_size": 2, "max_length": 8, "device": "cpu"}
    model = VloraLM(str(folder / "p"), num_samples=4, **arguments)
    seen = []
    model.cache_hook = type("Hook", (), {"add_partial": lambda self, *entry: seen.append(entry)})()
    text = " ".join(f"w{i}" for i in range(20))
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    (value,) = model.loglikelihood_rolling([request])
    (entry,) = model.draw_scores
    assert len(entry["log_probs"]) == 4 and value == pytest.approx(log_mean_exp(entry["log_probs"]))
    assert [(kind, answer) for kind, _, answer in seen] == [("loglikelihood_rolling", value)]
    at_mean = VloraLM(str(folder / "p"), num_samples=0, **arguments).loglikelihood_rolling([request])
    assert at_mean[0] != pytest.approx(value)
    with pytest.raises(ConfigError, match="even for antithetic draws, got 3"):
        VloraLM(str(folder / "p"), num_samples=3, **arguments)
