"""Adapters of several kinds on tiny models, with posteriors of visible width."""

import json
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from vlora.posterior import Posterior, PosteriorMeta

SIZE = 54  # the vocabulary of the word tokenizer in tests/eval


def deep_llama(attention: str = "sdpa") -> LlamaForCausalLM:
    """Four blocks, grouped-query attention."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=SIZE, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.4, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def bert(num_labels: int = 3) -> BertForSequenceClassification:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, num_labels=num_labels, pad_token_id=0,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def posterior_of(model: PeftModel, config: Any, *, seed: int = 0, spread: float = 0.2) -> Posterior:
    """Make every LoRA B visible and put a Gaussian around all trained tensors."""
    from vlora.posterior.keys import saved_tensors

    torch.manual_seed(50 + seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_" in name or "bias" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    mean = {key: value.detach().clone() for key, value in saved_tensors(model).items()}
    plain = json.loads(json.dumps(config.to_dict(), default=_plain))
    hess = {key: torch.rand_like(value) + 0.5 for key, value in mean.items()}
    return Posterior(mean, hess, PosteriorMeta(num_examples=100, ess=1 / spread**2, seed=seed), plain)


def adapted(base: Any, **settings: Any) -> tuple[PeftModel, Posterior]:
    """A PEFT model with a LoRA adapter of these settings, and its posterior."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 6, "lora_dropout": 0.4, **settings})
    model = get_peft_model(base, config)
    return model, posterior_of(model, config)


CASES = {
    "llama": lambda: adapted(deep_llama(), target_modules=["q_proj", "v_proj"]),
    "upper blocks": lambda: adapted(
        deep_llama(), target_modules=["q_proj", "down_proj"], layers_to_transform=[2, 3], use_rslora=True
    ),
    "eager, patterns": lambda: adapted(
        deep_llama("eager"), target_modules=["k_proj", "up_proj"], rank_pattern={"up_proj": 2},
        alpha_pattern={"k_proj": 9},
    ),
    "head": lambda: adapted(
        deep_llama(), target_modules=["o_proj"], layers_to_transform=[3], modules_to_save=["lm_head"]
    ),
    "gpt2, biases": lambda: adapted(
        gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, bias="lora_only", layers_to_transform=[1, 2]
    ),
    "gpt2, norm and tokens": lambda: adapted(gpt2(), target_modules=["c_proj"], fan_in_fan_out=True,
        modules_to_save=["ln_f", "wte"]),
}  # fmt: skip
