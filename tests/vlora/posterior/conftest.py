"""A tiny Llama with a LoRA on it, and a posterior of that adapter."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from vlora import Posterior, PosteriorMeta


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def peft_model(base_folder) -> PeftModel:
    base = LlamaForCausalLM.from_pretrained(base_folder)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def posterior(peft_model, tmp_path) -> Posterior:
    peft_model.save_pretrained(tmp_path / "plain")
    plain = Posterior.from_pretrained(tmp_path / "plain")
    generator = torch.Generator().manual_seed(2)
    hess = {k: 0.5 + torch.rand(v.shape, generator=generator) for k, v in plain.mean.items()}
    meta = PosteriorMeta(
        num_examples=200, ess=1e4, weight_decay=1e-2, base_model=plain.meta.base_model, steps=10
    )
    return Posterior(plain.mean, hess, meta, plain.adapter_config)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(3, 32, (3, 9), generator=torch.Generator().manual_seed(3))
