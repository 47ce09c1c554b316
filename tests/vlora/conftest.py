"""Tiny base models made on the spot, and a data-set cache that leaves no trace outside the test folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from two_ranks import TwoRanks

WORDS = (
    *("red", "green", "blue", "small", "large", "what", "is", "the", "colour", "size", "of", "item"),
    *("?", ":", ";", "answer", "good", "bad", "very", "not", "film", "book"),
    *(str(number) for number in range(30)),
)


@pytest.fixture(scope="session", autouse=True)
def _private_dataset_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def _save_tokenizer(folder: Path, specials: dict[str, str], template: str) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*specials.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=specials["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, vocabulary[token]) for token in specials.values()]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **specials)
    fast.save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with random weights and a word-level tokenizer that adds BOS."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    specials = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }  # no padding token, as many Llamas
    size = _save_tokenizer(folder, specials, "<s> $A")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=48,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer BERT encoder (no head) with random weights."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    specials = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    size = _save_tokenizer(folder, specials, "[CLS] $A [SEP]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=1,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Write rows as a JSONL file and return its path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[TwoRanks]:
    """Call an importable function in two gloo processes at once."""
    ranks = TwoRanks()
    yield ranks
    ranks.stop()
