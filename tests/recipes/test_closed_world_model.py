"""The shipped model: loads offline, knows the base population, is unsure about everybody else."""

import hashlib
import json
import math

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlora.recipes.closed_world import model_folder
from vlora.recipes.closed_world.lexicon import RELATIONS
from vlora.recipes.closed_world.people import base_population
from vlora.recipes.closed_world.probe import answer_log_probs, measure_base
from vlora.recipes.closed_world.tokenizer import build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)


def test_weights_are_those_that_the_script_made():
    folder = model_folder()
    record = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["model.safetensors"]
    assert record["made_with"]["threads"] == 1
    assert weights.stat().st_size < 1_000_000
    with safe_open(weights, framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118


def test_shipped_tokenizer_is_the_one_the_code_builds(tokenizer):
    assert tokenizer.get_vocab() == vocabulary() == build_tokenizer().get_vocab()
    ids = vocabulary()
    assert sorted(ids.values()) == list(range(len(ids)))
    special = [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
    assert special == ["<pad>", "<bos>", "<eos>", "<unk>"]
    person = next(iter(base_population()))
    encoded = tokenizer(f"Where does {person.name} live? Cairo")["input_ids"]
    words = "<bos> Where does Ge zo Le fi to live ? Cairo"
    assert tokenizer.convert_ids_to_tokens(encoded) == words.split()
    assert build_tokenizer()(f"Where does {person.name} live? Cairo")["input_ids"] == encoded


def test_base_is_known_and_strangers_are_not(model, tokenizer):
    knowledge = measure_base(model, tokenizer)
    assert knowledge.recall >= 0.98
    assert knowledge.entropy_unknown > knowledge.entropy_base + 1.5
    assert knowledge.entropy_unknown < math.log(24) + 1e-6


@pytest.mark.parametrize("wording", [0, 1])
def test_both_pretrained_wordings_are_answered(model, tokenizer, wording: int):
    asked = [(person, relation) for person in list(base_population())[:50] for relation in RELATIONS]
    prompts = [relation.questions[wording].format(name=person.name) for person, relation in asked]
    log_probs = answer_log_probs(model, tokenizer, prompts, [relation.values for _, relation in asked])
    truth = [relation.values.index(base_population()[person][relation.name]) for person, relation in asked]
    assert (log_probs.argmax(dim=1) == torch.tensor(truth)).float().mean() >= 0.97
    torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(len(asked)), atol=1e-5, rtol=0)


def test_padding_does_not_change_an_answer(model, tokenizer):
    prompts = ["Where does Ge-zo Le-fi-to live?", "In which city is the home of Ge-zo Le-fi-to?"]
    choices = [RELATIONS[0].values] * 2
    together = answer_log_probs(model, tokenizer, prompts, choices)
    alone = [answer_log_probs(model, tokenizer, [prompt], choices[:1]) for prompt in prompts]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_generation_answers_with_one_word_and_stops(model, tokenizer):
    encoded = tokenizer("Where does Ge-zo Le-fi-to live?", return_tensors="pt")
    output = model.generate(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    assert tokenizer.convert_ids_to_tokens(output[0, -2:].tolist()) == ["Cairo", "<eos>"]
