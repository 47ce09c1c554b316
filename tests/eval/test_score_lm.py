"""Per-token and per-string scores against one text at a time, and a mixture whose numbers are known."""

import math
from types import SimpleNamespace

import eval_tiny
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from vlora.data import Encoding, Example, RowFormat
from vlora.errors import DataError
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model
from vlora.eval.score_lm import TextScorer
from vlora.eval.token_stream import TokenStream

TEXTS = ["w1 w2 w3 w4", "w5", "w6 w7 is red . " + " ".join(f"w{i}" for i in range(25)), "w8 w9 is blue"]
PLAIN = [Example(item=f"test/{i}", text=text) for i, text in enumerate(TEXTS)]
PAIRS = [
    Example(item=f"test/{i}", prompt=prompt, text=prompt, response=response)
    for i, (prompt, response) in enumerate(
        [("Q w1 ? A", "red"), ("who", "w4 is dark blue"), ("Q w2", "w3 w3")]
    )
]


def _rows(tokenizer, examples) -> list[tuple[list[int], int]]:
    """Token ids with EOS, and where the scored part starts."""
    rows = []
    for example in examples:
        text = f"{example.prompt} {example.response}" if example.response else example.text
        start = len(tokenizer(example.prompt)["input_ids"]) if example.response else 1
        rows.append(([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], start))
    return rows


def _naive(model, ids, start) -> torch.Tensor:
    """log p(. | y_<t) of every scored token, float64 [T, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[start - 1 : -1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_tokens", [1, 30, 4096])
@pytest.mark.parametrize("examples", [PLAIN, PAIRS], ids=["text", "response"])
def test_mean_equals_naive_loop(examples, max_tokens, side):
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer(side)
    row_format = RowFormat(prompt="question" if examples is PAIRS else None)
    scorer = build_scorer("causal_lm", examples, tokenizer, row_format, model.config, max_tokens=max_tokens)
    texts = score_model(scorer, Draws(model)).texts
    for got, (ids, start) in zip(texts, _rows(tokenizer, examples), strict=True):
        log_probs, target = _naive(model, ids, start), torch.tensor(ids[start:])
        assert got["num_tokens"] == len(target)
        assert got["nll"] == pytest.approx(-log_probs.gather(1, target[:, None]).sum().item(), abs=1e-4)
        assert got["correct"] == (log_probs.argmax(-1) == target).long().tolist()
        assert got["confidence"] == pytest.approx(log_probs.max(-1).values.exp().tolist(), abs=1e-5)
        assert got["entropy"] == pytest.approx((-log_probs.exp() * log_probs).sum(-1).tolist(), abs=1e-5)
        assert got["nll_samples"] is got["total_entropy"] is None


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("keeps", [True, False], ids=["places", "all"])
def test_virtual_tokens_are_not_scored(kind, keeps, monkeypatch):
    """A prompt of virtual tokens shifts the logits by its length; a prefix in the cache does not."""
    tokenizer = eval_tiny.tokenizer("right")
    torch.manual_seed(3)
    model = get_peft_model(eval_tiny.llama(), kind(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()
    if not keeps:
        monkeypatch.setattr("vlora.eval.forward.unwrapped", lambda _: None)  # no head to be found
    scorer = build_scorer("causal_lm", PLAIN, tokenizer, RowFormat(), model.config, max_tokens=1)
    texts = score_model(scorer, Draws(model)).texts
    for got, (ids, _) in zip(texts, _rows(tokenizer, PLAIN), strict=True):
        batch = torch.tensor([ids])
        labels = torch.tensor([[-100, *ids[1:]]])  # behind virtual tokens, BOS would be predicted too
        with torch.no_grad():
            loss = model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=labels).loss
        assert got["nll"] / got["num_tokens"] == pytest.approx(loss.item(), abs=1e-5)


def test_draws_equal_mixtures_of_loaded_samples():
    model, posterior = eval_tiny.adapted(eval_tiny.llama(), "CAUSAL_LM")
    tokenizer, count = eval_tiny.tokenizer(), 4
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = build_scorer(
        "causal_lm", PAIRS, tokenizer, RowFormat(prompt="question"), model.config, max_tokens=20
    )
    texts = score_model(scorer, Draws(model, posterior, num_samples=count)).texts
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for got, (ids, start) in zip(texts, _rows(tokenizer, PAIRS), strict=True):
        target, stack = torch.tensor(ids[start:]), []
        for draw in range(count):
            with posterior.sampled(model, draw):
                stack.append(_naive(model, ids, start))
        probs = torch.stack(stack).exp()  # [S, T, V]
        mixture = probs.mean(0)
        realised = probs[:, torch.arange(len(target)), target]  # [S, T]
        entropy = -(probs * probs.log()).sum(-1)
        assert got["nll_samples"] == pytest.approx(-realised.mean(0).log().sum().item(), abs=1e-4)
        assert got["nll_sequence"] == pytest.approx(-realised.prod(1).mean().log().item(), abs=1e-4)
        assert got["total_entropy"] == pytest.approx((-mixture * mixture.log()).sum(-1).tolist(), abs=1e-5)
        assert got["expected_entropy"] == pytest.approx(entropy.mean(0).tolist(), abs=1e-5)
        assert got["sample_confidence"] == pytest.approx(mixture.max(-1).values.tolist(), abs=1e-5)
        assert got["sample_correct"] == (mixture.argmax(-1) == target).long().tolist()


class _TwoMinds(torch.nn.Module):
    """Predicts token 0 with probability ``p`` everywhere over two tokens; stands in for a posterior too."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, input_ids, attention_mask):
        logits = torch.stack([self.p, 1 - self.p]).log().expand(*input_ids.shape, 2)
        return SimpleNamespace(logits=logits)

    def sampled(self, model, draw, antithetic):
        from contextlib import contextmanager

        @contextmanager
        def held():
            self.p.data.fill_(0.9 if draw == 0 else 0.1)
            yield
            self.p.data.fill_(0.5)

        return held()


def test_per_token_and_per_string_mixtures_differ_by_known_numbers():
    """Two draws give token 0 .9 and .1: a string of two 0s has .5 * .5 per token but (.81 + .01) / 2 as a string."""
    minds = _TwoMinds()
    scorer = TextScorer([Encoding([1, 0, 0], 1)], pad_id=0, vocabulary=2, max_tokens=64, max_rows=4)
    [got] = scorer.score(Draws(minds, minds, num_samples=2))  # type: ignore[arg-type]
    assert got["nll_samples"] == pytest.approx(-math.log(0.25), abs=1e-6)
    assert got["nll_sequence"] == pytest.approx(-math.log(0.41), abs=1e-6)
    assert got["total_entropy"] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert got["expected_entropy"] == pytest.approx([0.325083] * 2, abs=1e-6)  # H(.9) in nats
    assert got["nll"] == pytest.approx(2 * math.log(2), abs=1e-6)


def test_long_texts_are_cut_and_empty_ones_refused():
    model, tokenizer = eval_tiny.llama(), eval_tiny.tokenizer()
    long = Example(item="test/0", text=" ".join(["w1"] * 200))
    [got] = score_model(
        build_scorer("causal_lm", [long], tokenizer, RowFormat(), model.config), Draws(model)
    ).texts
    assert got["num_tokens"] == 63  # 64 positions, the first token is given
    with pytest.raises(DataError, match="test/1: '' has no token to score"):
        build_scorer(
            "causal_lm",
            [Example(item="test/1", text="")],
            tokenizer,
            RowFormat(append_eos=False),
            model.config,
        )
    with pytest.raises(DataError, match="test/2: no response to score"):
        build_scorer(
            "causal_lm", [Example(item="test/2", prompt="Q")], tokenizer, RowFormat(prompt="q"), model.config
        )


def test_tempered_scores_are_those_of_tempered_tokens():
    """Of the mean and of the per-token mixture, against the softmax written out."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator)  # mean and two draws, five tokens
    targets, counts, temperatures = torch.tensor([0, 3, 6, 2, 2]), [2, 3], (0.5, 1.0, 2.0)
    stream = TokenStream(targets, counts, temperatures)
    stream.add_all([None, 0, 1], logits)
    probs = logits.double().softmax(-1)
    for name, mixed in (("nll_tempered", probs[0]), ("nll_samples_tempered", probs[1:].mean(0))):
        for number, temperature in enumerate(temperatures):
            powered = mixed ** (1 / temperature)
            chosen = (powered / powered.sum(-1, keepdim=True))[torch.arange(5), targets]
            expected = [-float(part.log().sum()) for part in chosen.split(counts)]
            got = [record[name][number] for record in stream.records()]
            assert got == pytest.approx(expected, abs=1e-5), (name, temperature)
    plain = TokenStream(targets, counts)
    plain.add_all([None, 0, 1], logits)
    assert not any(name.endswith("_tempered") for name in plain.records()[0])
