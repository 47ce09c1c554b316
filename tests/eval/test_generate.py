"""Sampling with a cache: equal to a plain loop without one, to transformers' greedy, and to itself in any batch."""

import eval_tiny
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from vlora.errors import ConfigError, DataError
from vlora.eval.generate import Decoding, answer_noise, generate_answers

PROMPTS = [[1, 5, 6], [1, 44, 7, 8, 9, 10, 11], [1], [1, 20, 21, 22]]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=54,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.4,
            bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
    ).eval()


MODELS = {"llama": eval_tiny.llama, "gpt2": gpt2}


def plain(model, prompt: list[int], stream: np.ndarray | None, decoding: Decoding):
    """The definition, one answer at a time, without cache, padding or tensors of probabilities."""
    ids, log_probs, entropies = list(prompt), [], []
    for step in range(decoding.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
        believed = np.exp(logits - logits.max())
        believed /= believed.sum()
        drawn = np.exp((logits - logits.max()) / decoding.temperature)
        drawn /= drawn.sum()
        order, kept, mass = np.argsort(-drawn, kind="stable"), np.zeros(len(drawn)), 0.0
        for token in order:
            if mass >= decoding.top_p:
                break
            kept[token], mass = drawn[token], mass + drawn[token]
        if stream is None:
            token = int(believed.argmax())
        else:
            level, total = stream[step] * kept.sum(), 0.0
            for token in range(len(kept)):  # noqa: B007
                total += kept[token]
                if total > level:
                    break
        ids.append(token)
        log_probs.append(np.log(believed[token]))
        entropies.append(-(believed * np.log(believed)).sum())
        if token in decoding.stop_ids:
            break
    return ids[len(prompt) :], log_probs, entropies


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(12, stop_ids=frozenset({2, 30, 31})),
        Decoding(8, temperature=0.6, top_p=0.8, stop_ids=frozenset({2})),
    ],
)
def test_equals_the_plain_loop(name, decoding):
    model = MODELS[name]()
    noise = [[answer_noise(0, f"q/{i}", 0, m, 12) for m in range(3)] for i in range(len(PROMPTS))]
    found = generate_answers(model, PROMPTS, decoding, noise=noise)
    ended = 0
    for prompt, answers, streams in zip(PROMPTS, found, noise, strict=True):
        for answer, stream in zip(answers, streams, strict=True):
            ids, log_probs, entropies = plain(model, prompt, stream, decoding)
            assert answer.ids == ids
            assert answer.log_probs == pytest.approx(log_probs, abs=2e-5)
            assert answer.entropies == pytest.approx(entropies, abs=2e-5)
            assert answer.ended == (ids[-1] in decoding.stop_ids)
            ended += answer.ended
    assert len({tuple(a.ids) for answers in found for a in answers}) > 6
    if len(decoding.stop_ids) > 1:
        assert 0 < ended < 12  # some rows left the batch early, some went on


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_that_of_transformers(name):
    model = MODELS[name]()
    found = generate_answers(model, PROMPTS, Decoding(10, stop_ids=frozenset({2})))
    for prompt, (answer,) in zip(PROMPTS, found, strict=True):
        ids, mask = torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.long)
        theirs = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0
        )
        assert answer.ids == theirs[0, len(prompt) :].tolist()


def test_an_answer_does_not_depend_on_its_batch():
    model, decoding = eval_tiny.llama(), Decoding(6, stop_ids=frozenset({2}))
    noise = [[answer_noise(7, f"q/{i}", 1, m, 6) for m in range(2)] for i in range(len(PROMPTS))]
    together = generate_answers(model, PROMPTS, decoding, noise=noise)
    for i, prompt in enumerate(PROMPTS):
        for m in range(2):
            ((alone,),) = generate_answers(model, [prompt], decoding, noise=[[noise[i][m]]])
            assert alone.ids == together[i][m].ids
            assert alone.log_probs == pytest.approx(together[i][m].log_probs, abs=1e-5)


def test_answers_follow_the_distribution():
    model, draws = eval_tiny.llama(), 3000
    noise = [[answer_noise(0, "q", 0, m, 1) for m in range(draws)]]
    (answers,) = generate_answers(model, [[1, 5, 6]], Decoding(1), noise=noise)
    share = np.bincount([a.ids[0] for a in answers], minlength=54) / draws
    with torch.no_grad():
        probs = model(torch.tensor([[1, 5, 6]])).logits[0, -1].softmax(-1).numpy()
    assert np.abs(share - probs).max() < 4 * np.sqrt(0.25 / draws)


def test_the_cache_belongs_to_one_draw():
    """Under every draw: what the plain loop says with that draw's weights, and the draws differ."""
    model, posterior = eval_tiny.adapted(eval_tiny.llama(), "CAUSAL_LM")
    decoding, noise = Decoding(6, stop_ids=frozenset({2})), [[answer_noise(0, "q", 0, 0, 6)]]
    found = []
    for draw in range(3):
        with posterior.sampled(model, draw):
            ((answer,),) = generate_answers(model, [PROMPTS[1]], decoding, noise=noise)
            ids, log_probs, _ = plain(model, PROMPTS[1], noise[0][0], decoding)
        assert answer.ids == ids and answer.log_probs == pytest.approx(log_probs, abs=2e-5)
        found.append(answer.log_probs[0])
    assert len(set(found)) == 3


def test_noise_is_one_stream_per_answer():
    assert answer_noise(0, "q", 0, 0, 3).tolist() == answer_noise(0, "q", 0, 0, 8)[:3].tolist()
    keys = [(0, "q", 0, 0), (1, "q", 0, 0), (0, "r", 0, 0), (0, "q", 1, 0), (0, "q", 0, 1)]
    assert len({answer_noise(*key, 1)[0] for key in keys}) == len(keys)


class Positionless(torch.nn.Module):
    """A model that cannot be told positions, as some with relative ones: prompts of one length at a time."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2()
        self.widths = []

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None):
        self.widths.append(tuple(input_ids.shape))
        return self.inner(
            input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )


def test_without_positions_prompts_of_one_length_go_together():
    prompts = [[1, 5, 6], [1, 7], [1, 8, 9]]
    model = Positionless().eval()
    found = generate_answers(model, prompts, Decoding(4))
    assert sorted(model.widths[::4]) == [(1, 2), (2, 3)]
    for prompt, (answer,) in zip(prompts, found, strict=True):
        assert answer.ids == plain(model.inner, prompt, None, Decoding(4))[0]


def test_bad_input():
    with pytest.raises(DataError, match="a prompt has no token"):
        generate_answers(eval_tiny.llama(), [[]], Decoding())
    from peft import PromptTuningConfig, get_peft_model

    prompted = get_peft_model(
        eval_tiny.llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ConfigError, match="PROMPT_TUNING adapter"):
        generate_answers(prompted, [[1]], Decoding())
