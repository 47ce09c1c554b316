"""p(True) over several spellings: which strings are scored, and the plain sum of their probabilities."""

import eval_tiny
import numpy as np
import pytest
import torch

from vlora.errors import ConfigError
from vlora.eval.generation.config import PTrueConfig
from vlora.eval.generation.token_scores import Row, TokenScore, score_rows
from vlora.eval.generation.verdicts import ask, chances


def strings(asked):
    return [row.answer for row in asked.rows[: asked.num_true]], [
        row.answer for row in asked.rows[asked.num_true :]
    ]


def test_which_spellings_count():
    own = [([1, 2], [5]), ([1, 2], [5]), ([1, 2], [5, 9]), ([1, 2], [6, 7])]
    other = [([1, 2], [8]), ([1, 2], [])]
    assert strings(ask(own, other)) == ([(5,), (6, 7)], [(8,)])  # (5, 9) is part of (5,)


def test_a_spelling_that_both_verdicts_share_says_nothing():
    own, other = [([1], [5]), ([1], [3])], [([1], [6]), ([1], [3, 4])]
    assert strings(ask(own, other)) == ([(5,)], [(6,)])
    assert ask([([1], [3])], [([1], [3])]).rows == []
    assert ask([([1], [3, 4])], [([1], [3]), ([1], [2])]).rows == []


def test_strings_stand_behind_one_prompt_where_a_tokenizer_joins_its_end():
    asked = ask([([1, 2], [5]), ([1], [7, 5])], [([1, 2], [6])])
    assert {row.prompt for row in asked.rows} == {(1,)}
    assert strings(asked) == ([(2, 5), (7, 5)], [(2, 6)])


def test_prompts_that_were_cut_to_different_lengths_stay_with_their_strings():
    """Of (1 2 3 4) and a limit of five tokens a string of one leaves all, one of two cuts the front."""
    asked = ask([([1, 2, 3, 4], [5]), ([2, 3, 4], [6, 7])], [([1, 2, 3, 4], [8])])
    assert asked.rows == [Row((1, 2, 3, 4), (5,)), Row((2, 3, 4), (6, 7)), Row((1, 2, 3, 4), (8,))]


def test_it_is_the_plain_sum_of_probabilities():
    model, generator = eval_tiny.llama(), np.random.default_rng(0)
    size = model.config.vocab_size

    def plain(prompt, answer):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
        return float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))

    asked, expected = [], []
    for _ in range(3):
        prompt = generator.integers(4, size, 6).tolist()
        true, false = ([[10, 11], [12], [12]], [[13], [14, 10, 11]])
        asked.append(ask([(prompt, word) for word in true], [(prompt, word) for word in false]))
        yes = sum(np.exp(plain(prompt, word)) for word in ([10, 11], [12]))
        no = sum(np.exp(plain(prompt, word)) for word in false)
        expected.append(yes / (yes + no))
    asked.insert(1, ask([([1], [3])], [([1], [3])]))  # one that cannot be asked takes no row
    rows = [row for one in asked for row in one.rows]
    scores = score_rows(model, rows, pad_id=0, max_tokens=64, vocabulary=size)
    assert chances(asked, scores) == pytest.approx(expected, abs=1e-5)


def test_sums_stay_in_log_space():
    asked = ask([([1], [5]), ([1], [6])], [([1], [7])])
    scores = [TokenScore(np.array([value]), np.zeros(1)) for value in (-2000.0, -2000.0, -2000.0)]
    assert asked.rows == [Row((1,), (5,)), Row((1,), (6,)), Row((1,), (7,))]
    assert chances([asked], scores) == pytest.approx([2 / 3])


@pytest.mark.parametrize("words", [[], "", [" "], ["True", ""]])
def test_a_verdict_without_words_is_refused(words):
    with pytest.raises(ConfigError, match="p_true.false needs a word, or a list of its spellings"):
        PTrueConfig(false=words)
