"""What does gathering curvature while training cost? CPU time of a training step with and without, interleaved.

    python -m benchmarks.merge_quality.gathering

Random base weights: neither the time nor the memory depends on them.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from benchmarks.merge_quality.run import write
from vlora import IVON
from vlora.curvature import gathering, stream_bytes

ROUNDS = 6
VARIANTS: dict[str, dict[str, Any] | None] = {
    "without": None,
    "K = 1": {"draws": 1},
    "K = 2": {"draws": 2},
    "K = 2, G only": {"draws": 2, "outputs": False},
    "K = 2, 16 directions": {"draws": 2, "rank": 16},
    "all tokens": {"draws": None},
}
CASES = {
    "BERT, width 384, 6 layers; query, value, dense; 8 x 128 tokens": ("bert", 8, 128),
    "Llama, width 512, 4 layers; all linear; 4 x 256 tokens": ("llama", 4, 256),
    "Llama, width 512, 4 layers; query and value; 4 x 256 tokens": ("llama_qv", 4, 256),
}


def main() -> None:
    """One JSON per model."""
    torch.set_num_threads(1)
    for name, (kind, rows, tokens) in CASES.items():
        write("gathering", kind, lambda n=name, k=kind, r=rows, t=tokens: case(n, k, r, t))


def case(name: str, kind: str, rows: int, tokens: int) -> dict[str, Any]:
    """CPU seconds of a step, median over rounds, and its ratio to the step without, paired by round."""
    torch.manual_seed(0)
    model = adapted(kind)
    optimizer = IVON.auto(
        [p for p in model.parameters() if p.requires_grad], num_steps=1000, grad_batch_size=rows
    )
    ids = torch.randint(5, 900, (rows, tokens))
    labels = torch.zeros(rows, dtype=torch.long) if kind == "bert" else ids

    def step() -> None:
        optimizer.train()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS):
        for variant, options in VARIANTS.items():
            block = nullcontext() if options is None else gathering(model, **options)
            times[variant].append(timed(step, block))
    base = np.array(times["without"])
    live, stored = stream_bytes(model)
    return {
        "case": name,
        "seconds": {variant: float(np.median(found)) for variant, found in times.items()},
        "extra": {
            v: float(np.median(np.array(found) / base)) - 1 for v, found in times.items() if v != "without"
        },
        "bytes_full": [live, stored],
        "bytes_16": list(stream_bytes(model, rank=16)),
    }


def timed(step: Callable[[], None], block: AbstractContextManager[Any]) -> float:
    """CPU seconds of one step inside a block."""
    with block:
        started = time.process_time()
        step()
        return time.process_time() - started


def adapted(kind: str) -> Any:
    """A model with a rank-8 adapter, in training mode."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    if kind == "bert":
        config = BertConfig(
            vocab_size=1000,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        )
        base, targets = BertForSequenceClassification(config), ["query", "value", "dense"]
        return get_peft_model(base, LoraConfig(r=8, target_modules=targets)).train()
    config = LlamaConfig(
        vocab_size=1000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1376
    )
    targets = ["q_proj", "v_proj"] if kind == "llama_qv" else "all-linear"
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules=targets)).train()


if __name__ == "__main__":
    main()
