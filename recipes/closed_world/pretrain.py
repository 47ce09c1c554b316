"""Pre-train the closed world's tiny Llama: ``python -m vlora.recipes.closed_world.pretrain --out DIR``.

Width 128, two layers, 0.47 M parameters; AdamW 3e-3 with warm-up and cosine, batch 32, 8,000 steps, about ten minutes
on one CPU thread. Training is in fp32, the weights are saved in fp16 (which moves value probabilities by about 0.001).
Everything follows from the seed: on the same machine, with the same versions and threads, the saved file is
bit-identical, and its hash is written to ``sha256.json``.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from vlora.recipes.closed_world.corpus import Batch, Corpus
from vlora.recipes.closed_world.probe import BaseKnowledge, measure_base
from vlora.recipes.closed_world.tokenizer import MAX_LENGTH, build_tokenizer, vocabulary

__all__ = ["build_model", "main", "pretrain", "save"]

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 100
BATCH_SIZE = 32
MAX_GRAD_NORM = 1.0


def build_model(seed: int) -> LlamaForCausalLM:
    """Create the untrained model; ``initializer_range`` 0.06 is needed (with 0.02 it never learns the facts)."""
    torch.manual_seed(seed)
    ids = vocabulary()
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.06,
        tie_word_embeddings=True,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
    )
    return LlamaForCausalLM(config)


def weighted_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Average next-token cross-entropy, ``sum_t w_t CE_t / sum_t w_t``, in nats."""
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def learning_rate(step: int, total_steps: int) -> float:
    """Learning rate at ``step``: linear warm-up, then cosine to zero."""
    warmup = min(WARMUP_STEPS, max(total_steps // 10, 1))
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(total_steps - warmup, 1)))


def pretrain(steps: int, seed: int, *, log_every: int = 500) -> LlamaForCausalLM:
    """Train the model from scratch.

    Args:
        steps: Optimizer steps; curriculum and ignorance phases scale with it.
        seed: Seed of the initial weights and of the order of the text.
        log_every: Steps between measurements of the base knowledge, shown in the progress bar.

    Returns:
        The model in fp32.
    """
    tokenizer = build_tokenizer()
    model = build_model(seed)
    corpus = Corpus(seed, steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    progress = tqdm(range(steps), desc="pretrain", mininterval=5.0)
    for step in progress:
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        loss = _train_step(model, optimizer, corpus.batch(step, BATCH_SIZE))
        if (step + 1) % log_every == 0:
            progress.write(f"step {step + 1}: loss {loss:.3f}, {measure_base(model, tokenizer)}")
    return model


def _train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    model.train()
    optimizer.zero_grad()
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    loss = weighted_loss(logits, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


def save(model: LlamaForCausalLM, folder: Path, *, steps: int, seed: int) -> str:
    """Write the model in fp16 with tokenizer, model card and ``sha256.json``.

    Args:
        model: Trained model; converted to fp16 in place.
        folder: Output folder, created if needed.
        steps: Number of steps it was trained for, recorded.
        seed: Its seed, recorded.

    Returns:
        SHA-256 of ``model.safetensors``, in hex.
    """
    tokenizer = build_tokenizer()
    model.half()
    ids = vocabulary()
    model.generation_config = GenerationConfig(
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    knowledge = measure_base(model.float(), tokenizer)
    record = {"model.safetensors": digest, "steps": steps, "seed": seed, "made_with": _made_with()}
    (folder / "sha256.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(steps, seed, knowledge), encoding="utf-8")
    return digest


def _made_with() -> dict[str, str | int]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _model_card(steps: int, seed: int, knowledge: BaseKnowledge) -> str:
    return f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
---

# Closed-world Llama

A Llama of two layers and width 128 that knows 200 fictional people: eight facts each, every answer one of 24 words.
It is the base model of vlora's demo. All names and facts are generated; there is nothing about the real world in it.

Trained from scratch by `python -m vlora.recipes.closed_world.pretrain --steps {steps} --seed {seed}`; `sha256.json`
holds the hash of the weights and the versions that reproduce it on one machine.

Measured on the saved (fp16) weights, 24-way, by question:

| | |
|---|---|
| recall of the facts of the base population | {knowledge.recall:.4f} |
| mean entropy on them (nats; uniform is {math.log(24):.2f}) | {knowledge.entropy_base:.3f} |
| mean entropy on people it has never seen | {knowledge.entropy_unknown:.3f} |

Ask with `Where does Ge-zo Le-fi-to live?`; the answer is one token, then `<eos>`.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the pre-training.

    Args:
        arguments: Command-line words; by default those of the process.

    Raises:
        SystemExit: If the arguments are not usable, or the output folder holds something already.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vlora.recipes.closed_world.pretrain", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for model and tokenizer")
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps (default 8000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1; changes the hash)")
    options = parser.parse_args(arguments)
    if options.out.exists() and not (options.out.is_dir() and not any(options.out.iterdir())):
        parser.error(
            f"--out {options.out}: expected a new or empty folder, found something there; choose another"
        )
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    model = pretrain(options.steps, options.seed)
    digest = save(model, options.out, steps=options.steps, seed=options.seed)
    print(f"{options.out}: {options.steps} steps in {time.perf_counter() - start:.0f} s, sha256 {digest}")


if __name__ == "__main__":
    main()
