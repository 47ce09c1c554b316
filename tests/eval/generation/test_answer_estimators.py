"""Estimators of one record: each against its definition, absent where it cannot be had."""

from dataclasses import replace

import numpy as np
import pytest

from vlora.eval.generation.estimators import ESTIMATORS, columns, confidences, item_scores
from vlora.eval.generation.records import AnswerRecord, Given, Pooled, Sample, to_line
from vlora.eval.metrics.uncertainty import mutual_information
from vlora.eval.semantic.entropy import counted_split


def record(**changes) -> AnswerRecord:
    """Two draws, three answers each, two meanings: blue (two wordings) and red."""
    answer = Given(
        text="blue", given=False, ended=True, log_probs=[-0.5, -0.1], entropies=[0.6, 0.2],
        draw_log_probs=[-0.4, -1.0], draw_entropies=[0.3, 0.7], p_true=0.9, draw_p_true=[0.8, 0.6],
    )  # fmt: skip
    pool = [
        Pooled(text="blue", cluster=0, tokens=2, draw_log_probs=[-0.4, -1.0]),
        Pooled(text="red", cluster=1, tokens=2, draw_log_probs=[-1.5, -0.7]),
        Pooled(text="the blue", cluster=0, tokens=3, draw_log_probs=[-2.5, -3.0]),
    ]
    drawn = [(0, 0, [-0.3, -0.1]), (0, 0, [-0.3, -0.1]), (0, 1, [-1.4, -0.1])]
    drawn += [(1, 1, [-0.5, -0.2]), (1, 2, [-1.0, -1.0, -1.0]), (1, 1, [-0.5, -0.2])]
    values = {
        "model": "m", "item": "test/0", "split": "test", "group": "all", "question": "q", "references": ["blue"],
        "num_tokens": 7, "answer": answer, "attempted": True, "correct": 1.0, "pool": pool,
        "samples": [Sample(draw=d, pool=p, log_probs=logs) for d, p, logs in drawn],
        "measured": {"eigenscore": 1.5, "kernel_language_entropy": None},
    }  # fmt: skip
    return AnswerRecord(**{**values, **changes})


def test_the_judged_answer():
    found = item_scores(record())
    assert found["max_probability"] == pytest.approx(0.6) and found["token_nll"] == pytest.approx(0.3)
    assert found["least_likely_token"] == 0.5 and found["mean_token_entropy"] == pytest.approx(0.4)
    assert (found["answer_length"], found["prompt_length"]) == (2, 7)
    assert found["p_true"] == pytest.approx(0.1) and found["p_true_draws"] == pytest.approx(0.3)
    mixture = -np.log((np.exp(-0.4) + np.exp(-1)) / 2)
    assert found["mixture"] == pytest.approx(mixture)
    assert found["reverse_information"] == pytest.approx(-mixture + 0.7)
    assert found["expected_token_entropy"] == pytest.approx(0.5)


def test_the_sampled_answers():
    found = item_scores(record())
    assert found["semantic_entropy"] == pytest.approx(np.log(2)) and found["num_clusters"] == 2
    assert found["disagreement"] == 0.5
    weights = np.exp([-0.2, -0.2, -0.75, -0.35, -1.0, -0.35])
    share = weights[[0, 1, 4]].sum() / weights.sum()
    expected = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert found["weighted_semantic_entropy"] == pytest.approx(expected)
    assert found["eigenscore"] == 1.5 and "kernel_language_entropy" not in found


def test_the_split_over_draws_counted_and_scored():
    found = item_scores(record())
    counted = counted_split([0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1])
    assert found["semantic_information"] == pytest.approx(counted["mutual_information"])
    assert found["semantic_expected"] == pytest.approx(counted["expected"])
    sums = np.exp([[-0.4, -1.5, -2.5], [-1.0, -0.7, -3.0]])
    scored = np.stack([sums[:, 0] + sums[:, 2], sums[:, 1]], axis=1)
    scored /= scored.sum(axis=1, keepdims=True)
    plain = mutual_information(np.log(scored)[:, None], corrected=False)[0]
    assert found["scored_semantic_information"] == pytest.approx(2 * plain)  # S/(S-1)
    antithetic = item_scores(record(antithetic=True))
    assert antithetic["scored_semantic_information"] == pytest.approx(plain)
    assert antithetic["scored_semantic_total"] == pytest.approx(
        plain + antithetic["scored_semantic_expected"]
    )


def test_an_answer_that_was_given_is_no_part_of_the_scored_meanings():
    """It has no stop token, so its probability is not comparable with those of sampled answers."""
    one = record()
    given = Pooled(text="given", cluster=2, tokens=1, draw_log_probs=[-0.01, -0.01])
    shifted = [replace(sample, pool=sample.pool + 1) for sample in one.samples]
    other = replace(one, answer=replace(one.answer, given=True), pool=[given, *one.pool], samples=shifted)
    same, found = item_scores(one), item_scores(other)
    assert found["scored_semantic_information"] == pytest.approx(same["scored_semantic_information"])
    assert found["disagreement"] == 1.0


def test_names_stay_in_one_order_and_all_are_described():
    found = item_scores(
        record(measured={"kernel_language_entropy": 1.0, "eigenscore": 0.1, "contradiction": 0.5})
    )
    assert list(found) == list(ESTIMATORS)


def test_without_draws_samples_or_verdict():
    answer = Given(
        text="x", given=True, ended=True, log_probs=[-1.0], entropies=[1.0], draw_log_probs=[-1.0],
        draw_entropies=[1.0],
    )  # fmt: skip
    plain = record(
        answer=answer, samples=[], pool=[Pooled(text="x", cluster=0, tokens=1, draw_log_probs=[-1.0])]
    )
    found = item_scores(plain)
    families = {ESTIMATORS[name].family for name in found}
    assert families == {"baseline", "answer", "samples"} and "p_true" not in found  # eigenscore was measured
    assert set(confidences(plain)) == {"max_probability", "token_probability"}


def test_confidences_are_probabilities():
    found = confidences(record())
    assert found == pytest.approx(
        {
            "max_probability": np.exp(-0.6), "token_probability": np.exp(-0.3), "cluster_share": 0.5,
            "mixture": (np.exp(-0.4) + np.exp(-1)) / 2, "p_true": 0.7,
        }
    )  # fmt: skip


def test_what_an_item_lacks_ranks_as_least_certain():
    found = columns([{"a": 1.0}, {"a": 2.0, "b": 0.5}], ("a", "b", "c"))
    assert found["a"].tolist() == [1, 2] and found["b"].tolist() == [np.inf, 0.5] and "c" not in found


def test_a_record_comes_back_from_its_line():
    import json

    one = record(correct=None)
    assert AnswerRecord.from_dict(json.loads(to_line(one))) == one
    impossible = Pooled(text="x", cluster=0, tokens=1, draw_log_probs=[-np.inf, -1.0])
    again = AnswerRecord.from_dict(json.loads(to_line(record(pool=[impossible], samples=[]))))
    assert again.pool[0].draw_log_probs == [-np.inf, -1.0]
