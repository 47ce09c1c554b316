"""Batched choice scores against one item, one choice, one token at a time."""

import math

import eval_tiny
import pytest
import torch

from vlora.data import Example, RowFormat
from vlora.errors import DataError
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model

FORMAT = RowFormat(prompt="question")


def _example(number: int, prompt: str, choices: list[str], label: int | None = 0) -> Example:
    return Example(item=f"test/{number}", prompt=prompt, text=prompt, choices=tuple(choices), label=label)


SINGLE = [
    _example(0, "Q w1 w2 w3 ? A", ["red", "blue", "green"]),
    _example(1, "Q w4 ?", ["blue", "green"]),
    _example(2, "Q " + " ".join(f"w{i}" for i in range(20)) + " A", ["red", "blue", "green", "dark"]),
]
MIXED = [
    *SINGLE,
    _example(3, "Q w7 w8 A", ["red", "dark red", "dark blue is w9", "dark"]),
    _example(4, "who is w3", ["w5 w6 w7", "w5 w6", "w8 w6 w7 w1 w2"]),
]


def _naive(model, tokenizer, example) -> list[float]:
    """Sum of token log-likelihoods of each choice, each in a pass of its own, then a softmax."""
    sums = []
    for choice in example.choices:
        prompt = tokenizer(example.prompt)["input_ids"]
        ids = tokenizer(f"{example.prompt} {choice}")["input_ids"]
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        sums.append(sum(log_probs[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
    total = math.log(sum(math.exp(value) for value in sums))
    return [value - total for value in sums]


@pytest.mark.parametrize("examples", [SINGLE, MIXED], ids=["single-token", "mixed"])
@pytest.mark.parametrize("max_tokens", [1, 40, 4096])
def test_choices_equal_naive_loop(examples, max_tokens):
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer()
    scorer = build_scorer("multiple_choice", examples, tokenizer, FORMAT, model.config, max_tokens=max_tokens)
    got = score_model(scorer, Draws(model)).log_probs
    for row, example in zip(got, examples, strict=True):
        expected = _naive(model, tokenizer, example)
        assert row[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
        assert torch.isinf(row[len(expected) :]).all()
        assert row.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_single_token_choices_share_one_pass_of_the_prompt():
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer()
    scorer = build_scorer("multiple_choice", SINGLE, tokenizer, FORMAT, model.config, max_rows=1)
    assert scorer.num_tokens == sum(scorer.prompt_tokens) == 7 + 4 + 23
    # "dark" and "dark red" need no row beyond those of "red" (the prompt) and "dark blue is w9"
    scorer = build_scorer("multiple_choice", MIXED[3:4], tokenizer, FORMAT, model.config, max_rows=1)
    assert [batch.inputs["input_ids"].tolist() for batch in scorer.batches] == [
        [tokenizer("Q w7 w8 A dark blue is")["input_ids"]]
    ]


def test_only_needed_positions_reach_the_output_head():
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[:2])))
    scorer = build_scorer("multiple_choice", SINGLE, tokenizer, FORMAT, model.config)
    score_model(scorer, Draws(model))
    assert seen[-1] == (1, 3)  # three rows of up to 23 tokens, one place each


def test_model_without_logits_to_keep_scores_the_same():
    class Plain(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer()
    scorer = build_scorer("multiple_choice", MIXED, tokenizer, FORMAT, model.config)
    torch.testing.assert_close(scorer.score(Plain(model)), scorer.score(model), atol=1e-6, rtol=0)


def test_without_bos_and_prompt_the_first_token_has_no_score():
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer(bos=False)
    example = _example(0, "", ["w1 w2", "w1 w3"])
    scorer = build_scorer("multiple_choice", [example], tokenizer, FORMAT, model.config)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer("w1")["input_ids"]])).logits[0, 0].double()
    wanted = logits[tokenizer.convert_tokens_to_ids(["w2", "w3"])].log_softmax(-1)
    torch.testing.assert_close(score_model(scorer, Draws(model)).log_probs[0], wanted, atol=1e-6, rtol=0)
    with pytest.raises(DataError, match=r"test/0: choice 'w1' has no token to score"):
        build_scorer("multiple_choice", [_example(0, "", ["w1", "w2"])], tokenizer, FORMAT, model.config)


def test_draws_equal_loading_each_sample_and_parameters_come_back_bit_equal():
    model, posterior = eval_tiny.adapted(eval_tiny.llama(), "CAUSAL_LM")
    tokenizer = eval_tiny.tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = build_scorer("multiple_choice", MIXED, tokenizer, FORMAT, model.config, max_tokens=60)
    scores = score_model(scorer, Draws(model, posterior, num_samples=4, antithetic=True))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert scores.sample_log_probs is not None and scores.sample_log_probs.shape == (5, 4, 4)
    for draw in range(4):
        sample = posterior.sample(draw, antithetic=True)
        state = {key.replace(".weight", ".default.weight"): value for key, value in sample.items()}
        model.load_state_dict(state, strict=False)
        for item, example in enumerate(MIXED):
            expected = _naive(model, tokenizer, example)
            got = scores.sample_log_probs[item, draw, : len(expected)].tolist()
            assert got == pytest.approx(expected, abs=1e-5)
    model.load_state_dict(before)
    mean = scores.log_probs
    assert (mean[0] - scores.sample_log_probs[0, 0]).abs()[:3].max() > 0.05  # the draws do differ


def test_every_batch_sees_the_same_draw():
    model, posterior = eval_tiny.adapted(eval_tiny.llama(), "CAUSAL_LM")
    tokenizer = eval_tiny.tokenizer()
    draws = Draws(model, posterior, num_samples=2)
    whole = build_scorer("multiple_choice", MIXED, tokenizer, FORMAT, model.config)
    alone = build_scorer("multiple_choice", MIXED, tokenizer, FORMAT, model.config, max_rows=1)
    torch.testing.assert_close(
        score_model(whole, draws).sample_log_probs,
        score_model(alone, draws).sample_log_probs,
        atol=1e-5,
        rtol=0,
    )


def test_half_precision_logits_are_upcast_before_the_softmax():
    model, tokenizer = eval_tiny.llama().to(torch.bfloat16), eval_tiny.tokenizer()
    scorer = build_scorer("multiple_choice", SINGLE, tokenizer, FORMAT, model.config)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(SINGLE[1].prompt)["input_ids"]])
        logits = model(input_ids=ids).logits[0, -1].double()
    wanted = logits[tokenizer.convert_tokens_to_ids(["blue", "green"])].log_softmax(-1)
    got = score_model(scorer, Draws(model)).log_probs[1, :2]
    torch.testing.assert_close(got, wanted, atol=2e-2, rtol=0)
    assert got.dtype == torch.float64 and got.exp().sum().item() == pytest.approx(1, abs=1e-12)
