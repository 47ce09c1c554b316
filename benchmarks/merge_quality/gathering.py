"""What does gathering curvature while training cost? A training step with and without it.

    python -m benchmarks.merge_quality.gathering [flops | time | pass]

``flops``: floating point operations of all matrix products of one step, counted by torch, which do not depend on the
machine (element-wise work and memory traffic are not in them). ``time``: CPU time, interleaved. ``pass``: CPU time
of one pass afterwards beside that of training steps on the same batch. Random base weights:
nothing here depends on them.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.merge_quality.run import RESULTS
from benchmarks.rows import keep_and_tell
from vlora import IVON
from vlora.curvature import collect_curvature, gathering, stream_bytes

ROUNDS, STEPS = 3, 13
"""Steps of a variant in a row, so that rows held back are summed at least once."""
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
    """One JSON per model and measure."""
    measures = {"flops": count, "time": case, "pass": one_pass}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", nargs="*", choices=[*measures, []], help="all without one")
    torch.set_num_threads(1)
    for measure in parser.parse_args().measure or measures:
        for name, (kind, rows, tokens) in CASES.items():
            make = measures[measure]
            keep_and_tell(
                RESULTS,
                f"gathering_{measure}",
                kind,
                lambda n=name, k=kind, r=rows, t=tokens, m=make: m(n, k, r, t),
            )


def count(name: str, kind: str, rows: int, tokens: int) -> dict[str, Any]:
    """Floating point operations of a forward and backward pass, and the share that gathering adds."""
    model = adapted(kind)
    found = {variant: flops(model, rows, tokens, options) for variant, options in VARIANTS.items()}
    base = found["without"]
    extra = {variant: value / base - 1 for variant, value in found.items() if variant != "without"}
    return {"case": name, "flops": base, "extra": extra, **_sizes(model)}


def flops(model: Any, rows: int, tokens: int, options: dict[str, Any] | None) -> int:
    """Of a forward and backward pass, mean over ``STEPS``, inside a gathering with these options, or outside of any."""
    ids = torch.randint(5, 900, (rows, tokens))
    labels = ids if model.config.model_type == "llama" else torch.zeros(rows, dtype=torch.long)
    block = nullcontext() if options is None else gathering(model, **options)
    in_place = {
        torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]
    }  # torch knows addmm only
    with block, FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        for _ in range(STEPS):
            model(input_ids=ids, labels=labels).loss.backward()
    model.zero_grad()
    return counter.get_total_flops() // STEPS


def _sizes(model: Any) -> dict[str, list[int]]:
    """Bytes while gathering and stored, full and with 16 directions."""
    return {"bytes_full": list(stream_bytes(model)), "bytes_16": list(stream_bytes(model, rank=16))}


def case(name: str, kind: str, rows: int, tokens: int) -> dict[str, Any]:
    """CPU seconds of a step, median over rounds, and its ratio to the step without, paired by round."""
    torch.manual_seed(0)
    model = adapted(kind)
    step, _ = training_step(model, kind, rows, tokens)
    step()
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS):
        for variant, options in VARIANTS.items():
            block = nullcontext() if options is None else gathering(model, **options)
            times[variant].append(timed(step, block) / STEPS)
    base = np.array(times["without"])
    return {
        "case": name,
        "step_seconds": {variant: float(np.median(found)) for variant, found in times.items()},
        "extra": {
            v: float(np.median(np.array(found) / base)) - 1 for v, found in times.items() if v != "without"
        },
        **_sizes(model),
    }


def one_pass(name: str, kind: str, rows: int, tokens: int) -> dict[str, Any]:
    """CPU time of a batch of one pass afterwards by that of a training step on it, medians over rounds."""
    torch.manual_seed(0)
    model = adapted(kind)
    step, batch = training_step(model, kind, rows, tokens)
    step()
    times: dict[str, list[float]] = {"step": [], "pass": []}
    for _ in range(ROUNDS):
        times["step"].append(timed(step, nullcontext()) / STEPS)
        started = time.process_time()
        collect_curvature(model, [batch] * STEPS, votes="equal", progress=False)
        times["pass"].append((time.process_time() - started) / STEPS)
    step_seconds, pass_seconds = (float(np.median(seconds)) for seconds in times.values())
    stored = _sizes(model)["bytes_full"][1]
    return {"case": name, "ratio": pass_seconds / step_seconds, "stored": stored}


def training_step(
    model: Any, kind: str, rows: int, tokens: int
) -> tuple[Callable[[], None], dict[str, torch.Tensor]]:
    """A step of IVON on one random batch, and that batch."""
    optimizer = IVON.auto(
        [p for p in model.parameters() if p.requires_grad], num_steps=1000, grad_batch_size=rows
    )
    ids = torch.randint(5, 900, (rows, tokens))
    batch = {"input_ids": ids, "labels": torch.zeros(rows, dtype=torch.long) if kind == "bert" else ids}

    def step() -> None:
        optimizer.train()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, batch


def timed(step: Callable[[], None], block: AbstractContextManager[Any]) -> float:
    """CPU seconds of ``STEPS`` steps inside a block."""
    with block:
        started = time.process_time()
        for _ in range(STEPS):
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
