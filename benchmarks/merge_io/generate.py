"""Checkpoints to merge: random weights of the shape of a 1.1 B-parameter Llama, and models that differ a little."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

__all__ = ["CONFIG", "shapes", "write_adapter", "write_checkpoints"]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""The shape of TinyLlama 1.1B."""


def shapes(layers: int = CONFIG["num_hidden_layers"]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a model with so many layers."""
    width, inner, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    narrow = width // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        found |= {
            f"{stem}.self_attn.q_proj.weight": (width, width),
            f"{stem}.self_attn.k_proj.weight": (narrow, width),
            f"{stem}.self_attn.v_proj.weight": (narrow, width),
            f"{stem}.self_attn.o_proj.weight": (width, width),
            f"{stem}.mlp.gate_proj.weight": (inner, width),
            f"{stem}.mlp.up_proj.weight": (inner, width),
            f"{stem}.mlp.down_proj.weight": (width, inner),
            f"{stem}.input_layernorm.weight": (width,),
            f"{stem}.post_attention_layernorm.weight": (width,),
        }
    return {**found, "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


def write_checkpoints(
    folder: Path, names: tuple[str, ...] = ("base", "a", "b"), layers: int = CONFIG["num_hidden_layers"]
) -> None:
    """One model folder per name: the first is random (standard deviation .02), the others differ from it by .002."""
    (folder / names[0]).mkdir(parents=True)
    base = {}
    for number, (key, shape) in enumerate(shapes(layers).items()):
        base[key] = (0.02 * _normal(shape, number)).bfloat16()
    _save(folder / names[0], base, layers)
    for index, name in enumerate(names[1:], 1):
        model = {}
        for number, (key, value) in enumerate(base.items()):
            model[key] = (value.float() + 0.002 * _normal(value.shape, 1000 * index + number)).bfloat16()
        _save(folder / name, model, layers)


def write_adapter(folder: Path, rank: int = 16, layers: int = CONFIG["num_hidden_layers"]) -> None:
    """A PEFT adapter on all linear layers of the decoder."""
    folder.mkdir()
    adapted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    tensors = {}
    for number, (key, shape) in enumerate(shapes(layers).items()):
        if len(shape) == 2 and any(layer in key for layer in adapted):
            stem = f"base_model.model.{key.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = 0.02 * _normal((rank, shape[1]), 5000 + number)
            tensors[f"{stem}.lora_B.weight"] = 0.02 * _normal((shape[0], rank), 6000 + number)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": adapted,
        "base_model_name_or_path": None, "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _save(folder: Path, tensors: dict[str, torch.Tensor], layers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({**CONFIG, "num_hidden_layers": layers}, indent=2), encoding="utf-8"
    )
