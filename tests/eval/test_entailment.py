"""The entailment judge: labels by name, batches, disk cache, failures that are counted."""

import json

import eval_tiny
import numpy as np
import pytest
import torch

from vlora.errors import ConfigError
from vlora.eval.entailment import EntailmentModel, VerdictCache, pairwise_relations, relation_columns
from vlora.eval.semantic.clusters import entailment_clusters

PAIRS = [("Q w1", "A w2"), ("w3 w4 w5 w6", "w7"), ("w7", "w3 w4 w5 w6"), ("red", "blue")]


def test_labels_by_name():
    assert relation_columns({0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}, "m") == [2, 1, 0]
    assert relation_columns({0: "entailment", 1: "not_entailment"}, "m") == [0, 1, None]
    with pytest.raises(ConfigError, match="classes are named LABEL_0, LABEL_1, LABEL_2, expected entailment"):
        relation_columns({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, "m")


def test_batched_verdicts_are_those_of_single_pairs_in_the_right_columns(tmp_path):
    place = eval_tiny.judge_folder(tmp_path / "judge")
    found = EntailmentModel(place, batch_size=3).relations(PAIRS)
    assert found.sum(axis=1) == pytest.approx(1)
    model, tokenizer = eval_tiny.bert(num_labels=3), eval_tiny.tokenizer(bos=True, segments=True)
    for pair, row in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            probs = model(**tokenizer(*pair, return_tensors="pt")).logits[0].softmax(-1).numpy()
        assert row == pytest.approx(probs[[1, 2, 0]], abs=1e-5)


def test_verdicts_are_kept_on_disk_by_weights_and_texts(tmp_path):
    place = eval_tiny.judge_folder(tmp_path / "judge")
    first = EntailmentModel(place, cache=tmp_path / "cache")
    found = first.relations(PAIRS)
    (file,) = (tmp_path / "cache").iterdir()
    assert len(file.read_text().splitlines()) == len(PAIRS)
    again = EntailmentModel(place, cache=tmp_path / "cache")
    again._model = None  # nothing may be judged again
    assert again.relations(PAIRS[::-1]) == pytest.approx(found[::-1])
    torch.manual_seed(1)
    other = EntailmentModel(
        eval_tiny.judge_folder(tmp_path / "other", ("entailment", "neutral", "contradiction"))
    )
    assert other.relations(PAIRS) != pytest.approx(found)
    EntailmentModel(eval_tiny.judge_folder(tmp_path / "judge"), cache=tmp_path / "cache").relations(
        [("w1", "w2")]
    )
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_cut_line_of_the_cache_is_judged_again(tmp_path):
    cache = VerdictCache(tmp_path, "a" * 64)
    cache.add({("a", "b"): [0.2, 0.3, 0.5]})
    with open(cache.path, "a") as file:
        file.write('{"pair": "x", "p": [0.1')
    VerdictCache(tmp_path, "a" * 64).add({("c", "d"): [1.0, 0.0, 0.0]})
    again = VerdictCache(tmp_path, "a" * 64)
    assert again.get(("a", "b")) == [0.2, 0.3, 0.5] and again.get(("c", "d")) == [1.0, 0.0, 0.0]
    assert json.loads(cache.path.read_text().splitlines()[-1])["p"] == [1.0, 0.0, 0.0]


def test_damaged_verdicts_are_counted_and_cost_no_other(tmp_path, caplog):
    cache = VerdictCache(tmp_path, "a" * 64)
    cache.add({("a", "b"): [0.2, 0.3, 0.5], ("c", "d"): [1.0, 0.0, 0.0]})
    first, second = cache.path.read_text().splitlines()
    short, nan = first.replace(", 0.5", ""), first.replace("0.5", "NaN")
    cache.path.write_text("\n".join([short, "{damaged", nan, "", second]) + "\n")
    again = VerdictCache(tmp_path, "a" * 64)
    assert again.damaged == 3 and again.get(("a", "b")) is None and again.get(("c", "d")) == [1.0, 0.0, 0.0]
    assert "3 damaged line(s) left out; their pairs are judged again" in caplog.text


def test_a_pair_that_fails_is_counted_and_costs_no_other(tmp_path, caplog):
    judge = EntailmentModel(eval_tiny.judge_folder(tmp_path / "judge"), cache=tmp_path / "cache")
    whole = judge.relations(PAIRS)
    judge = EntailmentModel(eval_tiny.judge_folder(tmp_path / "judge"))
    forward = judge._forward

    def failing(pairs):
        if ("red", "blue") in pairs:
            raise RuntimeError("bad pair")
        return forward(pairs)

    judge._forward = failing
    found = judge.relations(PAIRS)
    assert np.isnan(found[3]).all() and judge.failures == 1 and "bad pair" in caplog.text
    assert found[:3] == pytest.approx(whole[:3], abs=1e-6)


class Stub:
    """Texts of equal first letter entail each other."""

    def __init__(self):
        self.asked = []

    def relations(self, pairs):
        self.asked += pairs
        same = [premise.split()[-1][0] == hypothesis.split()[-1][0] for premise, hypothesis in pairs]
        return np.array([[0.9, 0.05, 0.05] if yes else [0.05, 0.15, 0.8] for yes in same])


def test_pairs_of_answers_are_judged_once_with_the_question_in_front():
    stub = Stub()
    table = pairwise_relations(stub, ["ant", "bee", "ant", "ape"], "which animal?")
    assert entailment_clusters(table).tolist() == [0, 1, 0, 0]
    assert len(stub.asked) == 6 and ("which animal? ant", "which animal? bee") in stub.asked
    assert table[0, 2].tolist() == [1, 0, 0]
    assert pairwise_relations(stub, ["one", "one"]).shape == (2, 2, 3)


def test_not_a_model(tmp_path):
    with pytest.raises(ConfigError, match="cannot load a pair classifier from"):
        EntailmentModel(str(tmp_path))
