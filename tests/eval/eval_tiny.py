"""Config-built models, a word tokenizer and posteriors, small enough to score one item at a time."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from vlora.posterior import Posterior, PosteriorMeta

WORDS = [f"w{i}" for i in range(40)] + ["red", "blue", "green", "dark", "is", "Q", "A", "who", "?", "."]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def tokenizer(
    padding_side: str = "right", bos: bool = True, segments: bool = False
) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        from tokenizers.processors import TemplateProcessing

        core.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_max_length=64,
        model_input_names=["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
    )


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def bert(num_labels: int = 3, seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        num_labels=num_labels,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config).eval()


def adapted(base: Any, task_type: str, seed: int = 0, spread: float = 0.3) -> tuple[PeftModel, Posterior]:
    """A PEFT model with a random adapter and a posterior of visible width around it."""
    targets = ["q_proj", "v_proj"] if task_type == "CAUSAL_LM" else ["query", "value"]
    torch.manual_seed(100 + seed)
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task_type, lora_dropout=0.5)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    from peft import get_peft_model_state_dict

    mean = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}
    config = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=_plain))
    hess = {key: torch.full_like(value, 1.0) for key, value in mean.items() if "lora_" in key}
    meta = PosteriorMeta(num_examples=100, ess=1 / spread**2, weight_decay=0.0, seed=seed)
    return model, Posterior(mean, hess, meta, config)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def save_base(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def judge_folder(path: Path, labels: tuple[str, ...] = ("CONTRADICTION", "Entailment", "neutral")) -> str:
    """A random sequence-pair classifier with class names."""
    model = bert(num_labels=len(labels))
    model.config.id2label = dict(enumerate(labels))
    model.save_pretrained(path)
    tokenizer(bos=True, segments=True).save_pretrained(path)
    return str(path)
