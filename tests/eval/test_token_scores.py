"""Scores of given answers behind shared prompts: equal to one plain pass a row, whatever the batch."""

import eval_tiny
import numpy as np
import pytest
import torch
from test_generate import MODELS, Positionless

from vlora.eval.generation.token_scores import Row, last_states, score_rows

ROWS = [
    Row((1, 5, 6), (7, 8, 2)), Row((1, 5, 6), (9,)), Row((1, 44, 7, 8, 9, 10, 11), (12, 13)),
    Row((1,), (20, 21, 22, 23)),
    Row((1, 5, 6), (7, 8, 9, 10, 11, 2)), Row((1, 7, 9), (3,)),
]  # fmt: skip


def plain(model, row: Row):
    with torch.no_grad():
        logs = model(torch.tensor([[*row.prompt, *row.answer]])).logits[0].double().log_softmax(-1)
    places = range(len(row.prompt) - 1, len(row.prompt) + len(row.answer) - 1)
    log_probs = [float(logs[place, token]) for place, token in zip(places, row.answer, strict=True)]
    return log_probs, [float(-(logs[place].exp() * logs[place]).sum()) for place in places]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_tokens", [1, 8, 1000])
def test_equal_to_one_pass_a_row(name, max_tokens):
    model = MODELS[name]()
    found = score_rows(model, ROWS, pad_id=0, max_tokens=max_tokens, vocabulary=54)
    for row, score in zip(ROWS, found, strict=True):
        log_probs, entropies = plain(model, row)
        assert score.log_probs == pytest.approx(log_probs, abs=2e-5)
        assert score.entropies == pytest.approx(entropies, abs=2e-5)


def test_without_positions_prompts_of_one_length_go_together():
    model = Positionless().eval()
    found = score_rows(model, ROWS, pad_id=0, max_tokens=1000, vocabulary=54)
    for row, score in zip(ROWS, found, strict=True):
        assert score.log_probs == pytest.approx(plain(model.inner, row)[0], abs=2e-5)


def test_a_prompt_is_read_once():
    model, read = eval_tiny.llama(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    rows = [Row(tuple(range(5, 35)), (token,)) for token in range(10, 30)]
    score_rows(model, rows, pad_id=0, max_tokens=1000, vocabulary=54)
    assert read == [30]  # one-token answers need the prompt alone
    read.clear()
    score_rows(
        model,
        [Row(row.prompt, (*row.answer, 7, 8)) for row in rows],
        pad_id=0,
        max_tokens=1000,
        vocabulary=54,
    )
    assert read == [30, 40]


def test_states_are_those_of_the_last_token():
    model = eval_tiny.llama()
    found = last_states(model, ROWS, pad_id=0, max_tokens=12)
    for row, state in zip(ROWS, found, strict=True):
        with torch.no_grad():
            states = model(
                torch.tensor([[*row.prompt, *row.answer]]), output_hidden_states=True
            ).hidden_states
        assert state == pytest.approx(states[1][0, -1].double().numpy(), abs=1e-5)
    assert found.dtype == np.float64
