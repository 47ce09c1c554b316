"""The number formats that are compared, as the keys of ``vlora train`` that make them."""

from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BITS8 = {"state_bits": 8, "min_8bit_size": 1}
"""8-bit states also for tensors that are smaller than the default leaves alone: these models have no others."""
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16_adapter": {"adapter_dtype": "bfloat16"},
    "bf16_adapter_sr": {"adapter_dtype": "bfloat16", "optimizer": {"stochastic_rounding": True}},
    "bf16_autocast": {"training": {"bf16": True, "use_cpu": True}},
    "bf16_base": {"dtype": "bfloat16"},
    "bf16_base_bf16_adapter": {"dtype": "bfloat16", "adapter_dtype": "bfloat16"},
    "bf16_base_bf16_adapter_8bit_states": {
        "dtype": "bfloat16", "adapter_dtype": "bfloat16", "optimizer": BITS8,
    },
    "fp16_base": {"dtype": "float16"},
    "8bit_base": {"quantization": "8bit"},
    "4bit_base": {"quantization": "4bit"},
    "8bit_states": {"optimizer": BITS8},
    "8bit_base_bf16_adapter": {"quantization": "8bit", "adapter_dtype": "bfloat16"},
    "8bit_base_8bit_states": {"quantization": "8bit", "optimizer": BITS8},
    "8bit_base_bf16_adapter_8bit_states": {
        "quantization": "8bit", "adapter_dtype": "bfloat16", "optimizer": BITS8,
    },
    "4bit_base_bf16_adapter": {"quantization": "4bit", "adapter_dtype": "bfloat16"},
    "4bit_base_bf16_compute": {"quantization": "4bit", "dtype": "bfloat16"},
    "4bit_base_8bit_states_bf16_adapter_sr": {
        "quantization": "4bit", "adapter_dtype": "bfloat16", "optimizer": {**BITS8, "stochastic_rounding": True},
    },
}  # fmt: skip
ADAMW: dict[str, dict[str, Any]] = {
    name: {"optimizer": {"name": "adamw"}, **form}
    for name, form in {"adamw": {}, "adamw_4bit_base": {"quantization": "4bit"}}.items()
}
"""AdamW at the same learning rate, the default of both: does the 4-bit base cost it less?"""
BASES = ("float32", "bf16_base", "fp16_base", "8bit_base", "4bit_base")
"""Formats that differ in the base alone."""
TASKS = ("sst2", "trec", "fdu_books")
MOMENTUM: dict[str, dict[str, Any]] = {"8bit_momentum": {"optimizer": BITS8}}
"""8-bit states with h in float32 (``shadow.exact_hess``): a control of the benchmark, no setting of the package."""
TRACKED = ("float32", "8bit_states", *MOMENTUM)
NAMES = {
    "float32": "float32 throughout",
    "bf16_adapter": "bf16 adapter",
    "bf16_adapter_sr": "bf16 adapter, stochastic rounding",
    "bf16_autocast": "bf16 autocast",
    "bf16_base": "bf16 base",
    "bf16_base_bf16_adapter": "bf16 base, bf16 adapter",
    "bf16_base_bf16_adapter_8bit_states": "bf16 base, bf16 adapter, 8-bit states",
    "fp16_base": "fp16 base",
    "8bit_base": "8-bit base",
    "4bit_base": "4-bit base",
    "8bit_states": "8-bit states",
    "8bit_momentum": "8-bit momentum, float32 h (control)",
    "8bit_base_bf16_adapter": "8-bit base, bf16 adapter",
    "8bit_base_8bit_states": "8-bit base, 8-bit states",
    "8bit_base_bf16_adapter_8bit_states": "8-bit base, bf16 adapter, 8-bit states",
    "4bit_base_bf16_adapter": "4-bit base, bf16 adapter",
    "4bit_base_bf16_compute": "4-bit base, bf16 compute",
    "4bit_base_8bit_states_bf16_adapter_sr": "4-bit base, 8-bit states, bf16 adapter, stochastic rounding",
    "adamw": "AdamW, float32 throughout",
    "adamw_4bit_base": "AdamW, 4-bit base",
}
