"""Draws side by side behind shared prompts, against every row in full under one draw after the other."""

import functools
import logging

import eval_tiny
import pytest
import stack_cases
import torch

from vlora.data import Example, RowFormat
from vlora.errors import ConfigError
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model

FORMAT = RowFormat(prompt="question")
SHOTS = "Q w1 w2 A red . Q w3 w4 w5 A dark blue . "
QUESTIONS = ["Q w6 w7 A", "Q w6 w8 w9 w10 A", "Q w11 A", "Q w12 w13 w14 w15 A", "Q w16 w17 A"]
CHOICES = [
    ["red", "blue", "green"],
    ["dark red", "dark blue is w9", "dark"],
    ["red", "dark green"],
    ["w1 w2 w3", "w1 w2 w4 w5", "w1", "green"],
    ["blue", "red"],
]


def _choices(shots: str = SHOTS) -> list[Example]:
    pairs = zip(QUESTIONS, CHOICES, strict=True)
    return [
        Example(
            item=f"test/{i}", prompt=shots + question, text=shots + question, choices=tuple(choices), label=0
        )
        for i, (question, choices) in enumerate(pairs)
    ]


def _texts() -> list[Example]:
    return [
        Example(item=f"test/{i}", prompt=SHOTS + question, response=" ".join(choices))
        for i, (question, choices) in enumerate(zip(QUESTIONS, CHOICES, strict=True))
    ]


def _both(task, examples, model, posterior, *, row_format=FORMAT, side="right", samples=4, **sizes):
    scorer = build_scorer(task, examples, eval_tiny.tokenizer(side), row_format, model.config, **sizes)
    return [
        score_model(scorer, Draws(model, posterior, num_samples=samples, antithetic=True, scoring=scoring))
        for scoring in ("batched", "loop")
    ]


def _assert_close(fast, plain):
    for name in ("log_probs", "sample_log_probs", "expectation_of_products", "product_of_expectations"):
        left, right = getattr(fast, name), getattr(plain, name)
        assert (left is None) == (right is None), name
        if right is not None:
            torch.testing.assert_close(left, right, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("case", stack_cases.CASES)
@pytest.mark.parametrize("shots", [SHOTS, ""], ids=["prefix", "no prefix"])
def test_choices_equal_the_plain_loop(case, shots):
    model, posterior = stack_cases.CASES[case]()
    fast, plain = _both("multiple_choice", _choices(shots), model, posterior, side="left")
    assert fast.sample_log_probs.shape == (5, 4, 4)
    _assert_close(fast, plain)
    assert (plain.log_probs[0] - plain.sample_log_probs[0, 0])[:3].abs().max() > 0.02  # the draws do differ


@pytest.mark.parametrize("max_tokens", [1, 30, 100])
def test_choices_do_not_depend_on_the_batches(max_tokens):
    model, posterior = stack_cases.CASES["upper blocks"]()
    fast, plain = _both("multiple_choice", _choices(), model, posterior, max_tokens=max_tokens, max_rows=2)
    _assert_close(fast, plain)


@pytest.mark.parametrize("case", ["llama", "upper blocks", "gpt2, biases", "eager, patterns"])
@pytest.mark.parametrize("max_tokens", [40, 4096])
def test_texts_equal_the_plain_loop(case, max_tokens):
    model, posterior = stack_cases.CASES[case]()
    fast, plain = _both("causal_lm", _texts(), model, posterior, max_tokens=max_tokens)
    for left, right in zip(fast.texts, plain.texts, strict=True):
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert left[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("max_tokens", [16, 4096])
def test_labels_equal_the_plain_loop(max_tokens):
    model, posterior = stack_cases.adapted(
        stack_cases.bert(), target_modules=["query", "dense"], task_type="SEQ_CLS", bias="lora_only"
    )
    texts = ["w1 w2", "w3 w4 w5 w6 w7", "red", "w1 is w2 w3 w4 w5 w6 w7 w8 w9"]
    examples = [Example(item=f"test/{i}", text=text, label=i % 3) for i, text in enumerate(texts)]
    fast, plain = _both(
        "sequence_classification", examples, model, posterior, row_format=RowFormat(), max_tokens=max_tokens
    )
    assert fast.sample_log_probs.shape == (4, 4, 3)
    _assert_close(fast, plain)


def test_what_the_two_mixtures_of_a_choice_are():
    """Literal: one draw per whole string, and one mixture per token, both normalised over the choices."""
    model, posterior = stack_cases.CASES["llama"]()
    tokenizer, [example] = eval_tiny.tokenizer(), _choices()[3:4]
    scorer = build_scorer("multiple_choice", [example], tokenizer, FORMAT, model.config)
    scores = score_model(scorer, Draws(model, posterior, num_samples=3))
    product, expectation = [], []
    for choice in example.choices:
        start = len(tokenizer(example.prompt)["input_ids"])
        ids = torch.tensor([tokenizer(f"{example.prompt} {choice}")["input_ids"]])
        tokens = []
        for draw in range(3):
            with posterior.sampled(model, draw), torch.no_grad():
                probs = model(input_ids=ids).logits[0].double().softmax(-1)
            tokens.append(torch.stack([probs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]))
        table = torch.stack(tokens)  # [draws, tokens]
        product.append(table.mean(0).prod())
        expectation.append(table.prod(1).mean())
    for name, values in (("product_of_expectations", product), ("expectation_of_products", expectation)):
        expected = (torch.stack(values) / sum(values)).log()
        torch.testing.assert_close(getattr(scores, name)[0], expected, atol=1e-5, rtol=0)
    gap = scores.product_of_expectations - scores.expectation_of_products
    assert gap.abs().max() > 1e-3  # the two do differ for choices of several tokens


def test_models_without_a_tree_mask_still_take_draws_side_by_side(monkeypatch):
    model, posterior = stack_cases.CASES["upper blocks"]()
    model.get_base_model().config.sliding_window = 64
    rows = []
    model.get_base_model().model.layers[3].register_forward_hook(
        lambda module, inputs, output: rows.append(len(inputs[0]))
    )
    fast, plain = _both("multiple_choice", _choices(), model, posterior)
    _assert_close(fast, plain)
    assert max(rows) > 20 and max(rows) % 5 == 0  # five vectors, rows in full
    fast, plain = _both("causal_lm", _texts(), model, posterior)
    assert fast.texts[2]["nll_sequence"] == pytest.approx(plain.texts[2]["nll_sequence"], abs=1e-5)


@pytest.mark.parametrize("scoring", ["auto", "batched"])
def test_an_adapter_that_cannot_be_stacked_runs_in_turn_with_one_line(caplog, scoring):
    model, posterior = stack_cases.adapted(
        stack_cases.deep_llama(), target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"
    )
    scorer = build_scorer("multiple_choice", _choices(), eval_tiny.tokenizer(), FORMAT, model.config)
    draws = Draws(model, posterior, num_samples=2, antithetic=True, scoring=scoring)
    if scoring == "batched":
        with pytest.raises(ConfigError, match="scoring: batched cannot be had: .* is DoRA; use auto or loop"):
            score_model(scorer, draws)
        return
    with caplog.at_level(logging.WARNING):
        fast = score_model(scorer, draws)
    [line] = caplog.messages
    assert line.startswith("draws run one after another: ") and line.endswith("q_proj is DoRA")
    _assert_close(fast, score_model(scorer, Draws(model, posterior, 2, True, "loop")))


def test_out_of_memory_halves_rows_and_then_draws(monkeypatch, caplog):
    model, posterior = stack_cases.CASES["llama"]()
    scorer = build_scorer("multiple_choice", _choices(), eval_tiny.tokenizer(), FORMAT, model.config)
    expected = score_model(scorer, Draws(model, posterior, num_samples=4))
    rows, real = [], type(model.get_base_model()).forward

    @functools.wraps(real)
    def small(self, input_ids=None, **inputs):
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("no room")
        rows.append(len(input_ids))
        return real(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model.get_base_model()), "forward", small)
    got = score_model(scorer, Draws(model, posterior, num_samples=4))
    _assert_close(got, expected)
    assert max(rows) <= 3 and "2 draws side by side from here on" in caplog.text


@pytest.mark.parametrize("task", ["multiple_choice", "causal_lm"])
def test_a_model_that_gives_other_numbers_side_by_side_is_not_trusted(monkeypatch, caplog, task):
    """A model that looks at its whole batch is run one draw after another, with one line, or refused."""
    model, posterior = stack_cases.CASES["upper blocks"]()
    block = model.get_base_model().model.layers[2]
    examples = _choices() if task == "multiple_choice" else _texts()
    scorer = build_scorer(task, examples, eval_tiny.tokenizer(), FORMAT, model.config, max_rows=1)
    block.register_forward_hook(lambda module, inputs, output: output - output.mean((0, 1)))
    plain = score_model(scorer, Draws(model, posterior, 2, True, "loop"))
    assert not caplog.messages
    got = score_model(scorer, Draws(model, posterior, 2, True, "auto"))
    [line] = caplog.messages
    assert line.startswith("draws run one after another, every prompt in full: side by side, here it differs")
    if task == "multiple_choice":
        _assert_close(got, plain)
    else:
        assert got.texts == plain.texts
    with pytest.raises(
        ConfigError, match="scoring: batched cannot be had: here it differs from one draw after"
    ):
        score_model(scorer, Draws(model, posterior, 2, True, "batched"))
