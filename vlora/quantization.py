"""8-bit and 4-bit base models by bitsandbytes, on GPUs and on CPUs."""

import logging
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

from vlora.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

__all__ = ["HEADS", "Quantization", "prepare_quantized", "quantization_config"]

Quantization = Literal["none", "8bit", "4bit"]

HEADS = ("score", "classifier", "pre_classifier", "classification_head", "sequence_summary")
"""Names of classification heads in transformers' models."""
# bitsandbytes reports on every CPU with bf16 instructions that an optional kernel package is absent.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def quantization_config(quantization: str, *, compute_dtype: torch.dtype, task: str) -> "BitsAndBytesConfig":
    """Settings of bitsandbytes: LLM.int8, or NF4 with double quantisation.

    New classification heads stay unquantised, as they are trained; output embeddings do by transformers' rule.

    Raises:
        ConfigError: unknown kind.
        MissingDependencyError: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if quantization not in ("8bit", "4bit"):
        raise ConfigError(f"quantization must be none, 8bit or 4bit, got {quantization!r}")
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"quantization: {quantization} needs bitsandbytes; pip install 'variational-lora[quantization]'"
        )
    # The cast of float32 inputs to float16 is how LLM.int8 works, not a fault of the run.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    skip = list(HEADS) if task == "sequence_classification" else None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skip,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def prepare_quantized(model: "PreTrainedModel") -> "PreTrainedModel":
    """Freeze a quantised model and bring what is not quantised to float32 (PEFT's k-bit recipe)."""
    from peft import prepare_model_for_kbit_training

    for module in model.modules():
        # The packed CPU kernel needs sizes in multiples of 32 and 64, and rewrites the weights in place at the
        # first evaluation, which training on the same model would then feel.
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
