"""Items, model and adapters of the cost benchmark: five-shot multiple choice, a Llama built from a configuration.

Cost depends on lengths and on which blocks are adapted, not on what the weights say: the model is random. Tokens come
from a byte-pair tokenizer with 2048 entries that is trained on the data set's own training rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.rows import read_rows
from vlora.data import Example
from vlora.posterior import Posterior, PosteriorMeta
from vlora.posterior.keys import saved_tensors

__all__ = ["ADAPTERS", "CASES", "Case", "adapted", "base_model", "items"]

SHOTS, ITEMS, BLOCKS = 5, 16, 6
CASES = ("arc_easy", "openbookqa", "arc_easy_letters")
ADAPTERS: dict[str, list[int] | None] = {"all": None, "upper": [4, 5]}
"""Adapted blocks: all six, or the last two."""
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Case:
    """Items with their tokenizer."""

    examples: list[Example]
    tokenizer: PreTrainedTokenizerFast


def items(name: str, data: Path) -> Case:
    """Five shots from the training rows before each of the first test rows."""
    folder, letters = data / name.removesuffix("_letters"), name.endswith("_letters")
    train, test = (read_rows(folder / f"{split}.jsonl.gz") for split in ("train", "test"))
    shots = "".join(
        f"{_ask(row, letters)} {_answers(row, letters)[row['answer']]}\n\n" for row in train[:SHOTS]
    )
    examples = [
        Example(
            item=f"test/{number}",
            prompt=shots + _ask(row, letters),
            choices=tuple(_answers(row, letters)),
            label=row["answer"],
        )
        for number, row in enumerate(test[:ITEMS])
    ]
    return Case(examples, _tokenizer([row["question"] + " ".join(row["choices"]) for row in train]))


def _ask(row: dict[str, Any], letters: bool) -> str:
    listed = (
        "".join(f"{LETTERS[i]}. {choice}\n" for i, choice in enumerate(row["choices"])) if letters else ""
    )
    return f"Question: {row['question']}\n{listed}Answer:"


def _answers(row: dict[str, Any], letters: bool) -> list[str]:
    return list(LETTERS[: len(row["choices"])]) if letters else row["choices"]


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=2048, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", model_max_length=2048
    )


def base_model() -> LlamaForCausalLM:
    """1.7 million parameters, six blocks, position limit 2048."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=344, num_hidden_layers=BLOCKS, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, initializer_range=0.1, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapted(base: Any, blocks: list[int] | None) -> tuple[PeftModel, Posterior]:
    """Rank 8 on the query and value projections of the given blocks, with a posterior around random factors."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=blocks,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    mean = {key: value.detach().clone() for key, value in saved_tensors(model).items()}
    hess = {key: torch.ones_like(value) for key, value in mean.items()}
    meta = PosteriorMeta(num_examples=1000, ess=1 / 0.02**2, seed=0)
    return model, Posterior(mean, hess, meta, {"peft_type": "LORA"})
