"""Tiny model folders and adapters for the tests of checkpoint merges."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlora.config import load_config
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge


def llama(seed: int = 0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16, **changes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def gpt2(seed: int = 0, **changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    settings = {"vocab_size": 17, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, **changes}
    model = GPT2LMHeadModel(GPT2Config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def save_model(folder: Path, model, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, through its index if it has one."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else None
    found = {}
    for file in files or ["model.safetensors"]:
        with safe_open(folder / file, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


def raw_model(folder: Path, tensors: dict[str, Tensor], config: dict | None = None) -> Path:
    """A model folder of any tensors, which transformers need not know."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = {"model_type": "llama", "tie_word_embeddings": False, "vocab_size": 17, **(config or {})}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def odd_tensors(
    seed: int, dtype: torch.dtype = torch.float32, start: dict | None = None
) -> dict[str, Tensor]:
    """Tensors of awkward shapes; with ``start``, values near it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "big.weight": (301, 517), "wide.weight": (2, 70001), "odd.weight": (7, 13), "vector.weight": (33,),
        "stack.weight": (3, 5, 11), "one.weight": (1,), "scalar.weight": (),
    }  # fmt: skip
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if start is not None:
        made = {name: start[name].float() + 0.1 * value for name, value in made.items()}
    return {name: value.to(dtype) for name, value in made.items()}


def settings(output: Path, **values) -> ModelMergeConfig:
    return load_config(ModelMergeConfig, {"output": str(output), **values})


def merge(output: Path, **values) -> Path:
    return run_model_merge(settings(output, **values))


def lora(folder: Path, base, seed: int = 1, **options) -> Path:
    """A PEFT adapter with random factors on a model, which it changes, saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    values = {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        **options,
    }
    model = get_peft_model(base, LoraConfig(**values))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def peft_merged(base, adapter: Path) -> dict[str, Tensor]:
    """State dict of PEFT's own merge into a model, which it changes."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()


def loaded(folder: Path) -> dict[str, Tensor]:
    """State dict of a folder as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()
