"""LoRA posteriors of a tiny Llama in the layouts that pruning must keep right."""

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlora import Posterior, PosteriorMeta

TOKENS = torch.randint(3, 32, (3, 9), generator=torch.Generator().manual_seed(3))

LAYOUTS = {
    "plain": {},
    "odd scaling": {"lora_alpha": 7, "r": 3},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\..*q_proj": 5}},
    "rslora with patterns": {"use_rslora": True, "rank_pattern": {"layers.0.self_attn.q_proj": 6}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "bias": {"bias": "lora_only", "lora_bias": False},
    "head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make(folder: Path, *, weight_decay: float = 1e-2, seed: int = 1, **lora) -> Posterior:
    """Posterior with random factors and random h around a PEFT adapter of this layout."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **lora}
    model = get_peft_model(base(), LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder, save_embedding_layers=False)
    plain = Posterior.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    hess = {k: torch.rand(v.shape, generator=generator).pow(4) + 1e-3 for k, v in plain.mean.items()}
    meta = PosteriorMeta(
        num_examples=200, ess=1e3, weight_decay=weight_decay, gauge="g", base_model=plain.meta.base_model
    )
    return Posterior(plain.mean, hess, meta, plain.adapter_config)


def logits(posterior: Posterior, folder: Path) -> Tensor:
    """Logits of the saved folder under plain PEFT."""
    posterior.save_pretrained(folder)
    with torch.no_grad():
        return PeftModel.from_pretrained(base(), folder).eval()(TOKENS).logits


def with_mean(posterior: Posterior, mean: dict[str, Tensor]) -> Posterior:
    return replace(posterior, mean=mean)


def rescaled(posterior: Posterior, a: str, b: str, factors: Tensor) -> Posterior:
    """The same updates and evidence with row k of A multiplied by c_k and column k of B divided by it."""
    mean, hess = dict(posterior.mean), dict(posterior.hess)
    mean[a], mean[b] = mean[a] * factors[:, None], mean[b] / factors
    hess[a], hess[b] = hess[a] / factors[:, None] ** 2, hess[b] * factors**2
    return replace(posterior, mean=mean, hess=hess)
