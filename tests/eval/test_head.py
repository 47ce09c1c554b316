"""The output head one draw at a time: the numbers of the plain loop, and no tensor of draws, places and vocabulary."""

import pytest
import stack_cases
import torch
from eval_tiny import tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from vlora.data import Example, RowFormat
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model
from vlora.eval.variants import Variants

SHOTS = "Q w1 w2 A red . Q w3 w4 w5 A dark blue . "
WORDS = [f"w{number}" for number in range(1, 24)]
TEXTS = [
    Example(item=f"test/{i}", prompt=f"{SHOTS}Q w{i} A", response=" ".join(WORDS[i : 2 * i + 12]))
    for i in range(6)
]
PLACES = sum(len(example.response.split()) + 1 for example in TEXTS)  # with the end of sequence
DRAWS, SIZE = 4, stack_cases.SIZE


def _gemma2():
    """Soft caps of the logits behind the head."""
    torch.manual_seed(4)
    config = Gemma2Config(
        vocab_size=SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, final_logit_softcapping=3.0,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return stack_cases.adapted(Gemma2ForCausalLM(config).eval(), target_modules=["q_proj", "down_proj"])


def _opt():
    """A trunk that lies deeper than the model's base."""
    torch.manual_seed(5)
    config = OPTConfig(
        vocab_size=SIZE, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, init_std=0.4,
        max_position_embeddings=64, word_embed_proj_dim=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return stack_cases.adapted(OPTForCausalLM(config).eval(), target_modules=["q_proj", "fc2"])


CASES = {
    **{name: stack_cases.CASES[name] for name in ("upper blocks", "head", "gpt2, biases", "gpt2, norm and tokens")},
    "LoRA on the head": lambda: stack_cases.adapted(
        stack_cases.deep_llama(), target_modules=["v_proj", "lm_head"]
    ),
    "soft caps": _gemma2,
    "trunk below the base": _opt,
}  # fmt: skip


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor over the vocabulary that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == SIZE:
                self.numbers = max(self.numbers, tensor.numel())
        return out


def _texts(model, posterior, scoring, **sizes):
    scorer = build_scorer(
        "causal_lm", TEXTS, tokenizer(), RowFormat(prompt="question"), model.config, **sizes
    )
    with _Largest() as largest:
        found = score_model(scorer, Draws(model, posterior, DRAWS, antithetic=True, scoring=scoring)).texts
    return found, largest.numbers


def _assert_close(fast, plain):
    for left, right in zip(fast, plain, strict=True):
        for name, value in right.items():
            assert left[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("case", CASES)
def test_logits_of_two_draws_never_lie_side_by_side(case):
    model, posterior = CASES[case]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, _ = _texts(model, posterior, "loop")
    fast, largest = _texts(model, posterior, "batched", max_tokens=10**5)
    _assert_close(fast, plain)
    assert largest == PLACES * SIZE  # one batch under one vector, though five run side by side
    assert Variants(Draws(model, posterior, DRAWS), [None, 0]).apart
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_whose_trunk_cannot_be_told_keeps_all_draws_within_the_budget(monkeypatch):
    model, posterior = stack_cases.CASES["upper blocks"]()
    plain, _ = _texts(model, posterior, "loop")
    monkeypatch.setattr("vlora.eval.head._trunk", lambda _: None)
    budget = 30 * (DRAWS + 1) * SIZE
    monkeypatch.setattr("vlora.eval.score_lm.LOGIT_BUDGET", budget)
    fast, largest = _texts(model, posterior, "batched", max_tokens=10**5)
    _assert_close(fast, plain)
    assert PLACES * SIZE < largest <= budget


def _llama_classifier():
    """Its head looks for the last token."""
    config = stack_cases.deep_llama().config
    config.num_labels = 3
    return LlamaForSequenceClassification(config).eval(), ["q_proj", "v_proj"]


def _roberta():
    """Its head looks at the first token."""
    config = RobertaConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return RobertaForSequenceClassification(config).eval(), ["query", "value"]


@pytest.mark.parametrize("make", [_llama_classifier, _roberta])
def test_classifiers_whose_heads_look_at_places_are_scored_side_by_side(make):
    torch.manual_seed(6)
    base, targets = make()
    model, posterior = stack_cases.adapted(base, target_modules=targets, task_type="SEQ_CLS")
    rows = [Example(item=f"test/{i}", text=" ".join(WORDS[i : 2 * i + 3]), label=i % 3) for i in range(5)]
    found = []
    for scoring in ("loop", "batched"):
        scorer = build_scorer("sequence_classification", rows, tokenizer(), RowFormat(), model.config)
        scores = score_model(scorer, Draws(model, posterior, DRAWS, antithetic=True, scoring=scoring))
        found.append(scores.sample_log_probs)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
    assert Variants(Draws(model, posterior, DRAWS, scoring="batched"), [None, 0]).width == 2


def test_a_head_that_looks_at_positions_is_found_out(monkeypatch):
    model, posterior = stack_cases.CASES["upper blocks"]()
    inner = model.get_base_model()
    plain = type(inner.lm_head).forward

    def shifted(self, hidden):  # as a head would that has weights by position
        return plain(self, hidden) * torch.arange(1, hidden.shape[1] + 1)[:, None]

    assert Variants(Draws(model, posterior, DRAWS), [None, 0]).apart
    monkeypatch.setattr(inner.lm_head, "forward", shifted.__get__(inner.lm_head))
    assert not Variants(Draws(model, posterior, DRAWS), [None, 0]).apart


def test_a_forward_of_somebody_else_on_the_trunk_stays():
    model, posterior = stack_cases.CASES["upper blocks"]()
    trunk = model.get_base_model().get_decoder()
    own = trunk.forward
    trunk.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as accelerate puts there
    kept = trunk.forward
    plain, _ = _texts(model, posterior, "loop")
    fast, largest = _texts(model, posterior, "batched", max_tokens=10**5)
    _assert_close(fast, plain)
    assert largest == PLACES * SIZE and trunk.__dict__["forward"] is kept


def test_a_trunk_that_is_not_called_is_found_out(monkeypatch):
    """What is tried is the model itself: one that computes past its trunk, or changes its states, is not split."""
    model, posterior = stack_cases.CASES["upper blocks"]()
    inner = model.get_base_model()
    monkeypatch.setattr(inner, "get_decoder", lambda: torch.nn.Identity())
    assert not Variants(Draws(model, posterior, DRAWS), [None, 0]).apart
    monkeypatch.setattr(
        inner, "get_decoder", lambda: inner.model.layers[0]
    )  # gives a tensor, no named states
    assert not Variants(Draws(model, posterior, DRAWS), [None, 0]).apart
