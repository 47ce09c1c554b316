"""Batched classification scores against one text at a time, padding invariance, and running out of memory."""

from contextlib import nullcontext

import eval_tiny
import pytest
import torch

from vlora.data import Example, RowFormat
from vlora.eval.batching import make_batches
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model

TEXTS = ["w1 w2", "w3 w4 w5 w6 w7 w8 w9", "red", "w1 w2 is blue . w9", " ".join(f"w{i}" for i in range(30))]
EXAMPLES = [Example(item=f"test/{i}", text=text, label=i % 3) for i, text in enumerate(TEXTS)]


def _naive(model, text) -> torch.Tensor:
    with torch.no_grad():
        encoded = eval_tiny.tokenizer()(text, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        return model(**encoded).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("max_tokens", [1, 20, 4096])
def test_labels_equal_naive_loop_in_any_batching(max_tokens):
    model = eval_tiny.bert()
    scorer = build_scorer(
        "sequence_classification",
        EXAMPLES,
        eval_tiny.tokenizer("left"),
        RowFormat(),
        model.config,
        max_tokens=max_tokens,
    )
    scores = score_model(scorer, Draws(model))
    wanted = torch.stack([_naive(model, text) for text in TEXTS])
    torch.testing.assert_close(scores.log_probs, wanted, atol=1e-5, rtol=0)
    assert scores.sample_log_probs is None
    assert scorer.prompt_tokens == [3, 8, 2, 7, 31]


def test_draws_equal_loading_each_sample():
    model, posterior = eval_tiny.adapted(eval_tiny.bert(), "SEQ_CLS")
    scorer = build_scorer(
        "sequence_classification", EXAMPLES, eval_tiny.tokenizer(), RowFormat(), model.config, max_rows=2
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = score_model(scorer, Draws(model, posterior, num_samples=3))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for draw in range(3):
        with posterior.sampled(model, draw):
            wanted = torch.stack([_naive(model, text) for text in TEXTS])
        torch.testing.assert_close(scores.sample_log_probs[:, draw], wanted, atol=1e-5, rtol=0)
    assert (scores.sample_log_probs[:, 0] - scores.log_probs).abs().max() > 0.01


def test_text_pairs_use_their_segment_ids():
    model = eval_tiny.bert()
    example = Example(item="test/0", text="w1 w2", text_pair="w3", label=0)
    tokenizer = eval_tiny.tokenizer(segments=True)
    scorer = build_scorer("sequence_classification", [example], tokenizer, RowFormat(), model.config)
    ids = eval_tiny.tokenizer()("w1 w2", "w3")["input_ids"]
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), token_type_ids=torch.tensor([[0, 0, 0, 1]])).logits
    torch.testing.assert_close(
        score_model(scorer, Draws(model)).log_probs, wanted.double().log_softmax(-1), atol=1e-5, rtol=0
    )


def test_batches_are_sorted_by_length_and_keep_to_the_budget():
    lengths = [3, 9, 1, 4, 4, 12, 2]
    rows = [[7] * length for length in lengths]
    batches = make_batches({"input_ids": rows}, pad_id=5, max_tokens=12, max_rows=3)
    assert [batch.rows.tolist() for batch in batches] == [[5], [1], [3, 4, 0], [6, 2]]
    assert [batch.num_tokens for batch in batches] == [12, 9, 12, 4]
    assert batches[2].inputs["input_ids"].tolist() == [[7] * 4, [7] * 4, [7, 7, 7, 5]]
    assert batches[2].inputs["attention_mask"].tolist() == [[1] * 4, [1] * 4, [1, 1, 1, 0]]


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_counted_twice():
    model, sizes = eval_tiny.bert(), []

    class Tight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, **inputs):
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("too small a device")
            return self.inner(**inputs)

    args = ("sequence_classification", EXAMPLES, eval_tiny.tokenizer(), RowFormat(), model.config)
    scorer = build_scorer(*args)
    ticks = []
    torch.testing.assert_close(scorer.score(Tight(), ticks.append), scorer.score(model), atol=1e-5, rtol=0)
    assert sizes == [5, 3, 2, 1, 2]
    assert ticks == [5]


def test_a_row_that_does_not_fit_alone_is_an_error():
    class Full(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **inputs):
            raise torch.OutOfMemoryError("device full")

    config = eval_tiny.bert().config
    scorer = build_scorer("sequence_classification", EXAMPLES, eval_tiny.tokenizer(), RowFormat(), config)
    with pytest.raises(torch.OutOfMemoryError, match="device full"):
        scorer.score(Full())


def test_a_model_without_posterior_ignores_draw_numbers():
    assert isinstance(Draws(eval_tiny.bert()).at(3), nullcontext)
