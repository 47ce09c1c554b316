"""Tiny adapted models, batches and a literal reference for the curvature tests."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

PROJECTIONS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def tiny_llama(task=LlamaForCausalLM, **overrides):
    torch.manual_seed(0)
    settings = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return task(LlamaConfig(**{**settings, **overrides}))


def tiny_bert(task, **overrides):
    torch.manual_seed(0)
    settings = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return task(BertConfig(**{**settings, "num_attention_heads": 2, **overrides}))


def tiny_gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3, pad_token_id=0))


def with_adapter(base, targets=PROJECTIONS, **overrides):
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": targets}
    model = get_peft_model(base, LoraConfig(**{**settings, **overrides}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def token_rows(lengths, pad_to=None, side="right", seed=1):
    """Random token rows; labels are the tokens, padding is masked, and no padding predicts a first token."""
    generator = torch.Generator().manual_seed(seed)
    width = pad_to or max(lengths)
    rows = []
    for length in lengths:
        tokens = torch.randint(1, 50, (length,), generator=generator)
        pad = (0, width - length) if side == "right" else (width - length, 0)
        ids, mask = (nn.functional.pad(t, pad) for t in (tokens, torch.ones_like(tokens)))
        labels = ids.masked_fill(mask == 0, -100)
        labels[pad[0]] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def split(batch, size):
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(batch["input_ids"]), size)]


def literal_grams(model, rows, normalise, joined=True):
    """Example by example from autograd.grad on recorded outputs, joined or token by token; shares no code."""
    model.eval()
    sums = {}
    for row in rows:
        seen = {}

        def record(module, args, output, seen=seen):
            seen[module] = (args[0], output)

        names = {m: n for n, m in model.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
        handles = [module.register_forward_hook(record) for module in names]
        loss = model(**row).loss
        gradients = torch.autograd.grad(loss, [seen[m][1] for m in names])
        for handle in handles:
            handle.remove()
        for (module, name), gradient in zip(names.items(), gradients, strict=True):
            terms = (joined_terms if joined else token_terms)(seen[module][0], gradient, normalise)
            for gram, term in terms.items():
                sums[f"{name}.{gram}"] = sums.get(f"{name}.{gram}", 0) + term
    return {k: v * (len(v) / v.trace()) if normalise else v for k, v in sums.items()}


def joined_terms(inputs, gradient, normalise):
    """Of one example by its gradient D of the weight."""
    xs, gs = as_tokens(inputs, gradient)
    weight = 1 / gs.pow(2).sum() if normalise else 1.0
    whole = sum(torch.outer(g, x) for x, g in zip(xs, gs, strict=True))
    return {"input_gram": weight * whole.T @ whole, "output_gram": weight * whole @ whole.T}


def token_terms(inputs, gradient, normalise):
    """Of one example token by token."""
    xs, gs = as_tokens(inputs, gradient)
    weight = 1 / gs.pow(2).sum() if normalise else 1.0
    return {
        "input_gram": weight * sum(g.dot(g) * torch.outer(x, x) for x, g in zip(xs, gs, strict=True)),
        "output_gram": weight * sum(torch.outer(g, g) for g in gs),
    }


def as_tokens(*tensors):
    return [tensor.detach().flatten(0, -2) for tensor in tensors]


def assert_same(got, want, rtol=1e-5):
    assert got.keys() == want.keys()
    for key, gram in want.items():
        torch.testing.assert_close(
            got[key], gram.to(got[key].dtype), rtol=rtol, atol=rtol * gram.abs().max().item()
        )


def unpadded(lengths):
    padded = token_rows(lengths)
    return [{k: v[i, :n] for k, v in padded.items()} for i, n in enumerate(lengths)]


def unpadded_batches(lengths):
    return [{k: v.unsqueeze(0) for k, v in row.items()} for row in unpadded(lengths)]


def quantise(base, bnb, bits):
    for name, layer in list(base.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            shape = (layer.in_features, layer.out_features, False)
            if bits == 8:
                new = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                new = bnb.nn.Linear4bit(*shape, compute_dtype=torch.float32)
                new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, new.to("cpu"))
