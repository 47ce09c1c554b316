"""Random updates, posteriors and tiny PEFT models for the merge tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlora.merge.update import LoraUpdate
from vlora.posterior import Posterior, PosteriorMeta


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def positive(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64) + 0.1


def gram(n: int, seed: int) -> Tensor:
    x = rand(3 * n, n, seed=seed) * torch.linspace(0.1, 2, n, dtype=torch.float64)
    return x.mT @ x


def make_update(
    seed: int,
    m: int = 7,
    n: int = 9,
    r: int = 2,
    scale: float = 2.0,
    hess: bool = True,
    grams: bool = True,
    a: Tensor | None = None,
) -> LoraUpdate:
    """A random update; a given ``a`` is a frozen one."""
    prior = 0.01
    frozen = a is not None
    return LoraUpdate(
        rand(m, r, seed=seed),
        a if a is not None else rand(r, n, seed=seed + 1),
        scale,
        prior + positive(m, r, seed=seed + 2) if hess else None,
        prior + positive(r, n, seed=seed + 3) if hess and not frozen else None,
        prior if hess else 0.0,
        prior if hess and not frozen else 0.0,
        gram(n, seed + 4) if grams else None,
        gram(m, seed + 5) if grams else None,
        f"adapter{seed}",
        "layers.0.q_proj",
    )


def tiny_llama(seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).eval()


def tiny_bert(seed: int = 0):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=17,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        num_labels=3,
    )
    return BertForSequenceClassification(config).eval()


def make_adapter(folder: Path, seed: int, *, base=tiny_llama, **lora) -> Path:
    """Save a PEFT adapter with random factors, as PEFT itself would."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], **lora}
    settings.setdefault("task_type", "CAUSAL_LM")
    model = get_peft_model(base(), LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3 if "lora_" in name else 1.0)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tiny/base"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def two(tmp_path, base=tiny_llama, first=None, second=None):
    folders = [
        make_adapter(tmp_path / "a", 1, base=base, **(first or {})),
        make_adapter(tmp_path / "b", 2, base=base, **(second or {})),
    ]
    return folders, [Posterior.from_pretrained(f) for f in folders]


def add_posterior(
    plain: Posterior, seed: int, *, num_examples: int = 100, ess: float = 100.0, frozen_a: bool = False
) -> Posterior:
    """Give a plain adapter a random h; ``frozen_a`` leaves A deterministic."""
    hess = {}
    for number, (key, value) in enumerate(plain.mean.items()):
        if not (frozen_a and "lora_A" in key):
            hess[key] = positive(*value.shape, seed=1000 * seed + number).float()
    meta = PosteriorMeta(
        num_examples=num_examples, ess=ess, weight_decay=0.01 / num_examples, base_model={"id": "tiny/base"}
    )
    return Posterior(plain.mean, hess, meta, plain.adapter_config)


def add_curvature(posterior: Posterior, seed: int) -> Posterior:
    """Random Grams for every module."""
    curvature = {}
    for number, key in enumerate(k for k in posterior.mean if k.endswith(".lora_A.weight")):
        stem = key.removesuffix(".lora_A.weight")
        n, m = posterior.mean[key].shape[1], posterior.mean[f"{stem}.lora_B.weight"].shape[0]
        curvature[f"{stem}.input_gram"] = gram(n, seed + 2 * number).float()
        curvature[f"{stem}.output_gram"] = gram(m, seed + 2 * number + 1).float()
    return Posterior(
        posterior.mean, posterior.hess, posterior.meta, posterior.adapter_config, curvature=curvature
    )


def peft_deltas(folder: Path, base=tiny_llama) -> dict[str, Tensor]:
    """Update of every adapted module as PEFT computes it from a folder."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = PeftModel.from_pretrained(base(), folder)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach().double()
        for name, layer in layers.items()
    }


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")
