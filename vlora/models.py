"""Base models, tokenizers and adapters from the hub or from folders; one place that loads, for training and eval.

Weights are read from safetensors only and no code of a model repository runs unless ``trust_remote_code`` is set.
"""

import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from vlora.errors import ConfigError, PosteriorFormatError
from vlora.files import scratch_error
from vlora.posterior import Posterior, fingerprint_weights
from vlora.quantization import HEADS, Quantization, prepare_quantized, quantization_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load_adapter", "load_base_model", "load_model_config", "load_tokenizer", "num_labels_of"]

_AUTO_CLASSES = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
    "multiple_choice": "AutoModelForCausalLM",  # choices are scored by their likelihood
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HEAD_WEIGHTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


def load_tokenizer(
    base_model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Tokenizer of a base model, padding on the right, with a padding token in any case.

    Raises:
        ConfigError: there is no tokenizer at that place.
    """
    from transformers import AutoTokenizer

    with _readable(base_model, "tokenizer") as place:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"the tokenizer of {base_model} has no padding, EOS or unknown token to pad with")
    return tokenizer


def load_model_config(
    base_model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Configuration of a base model, without its weights.

    Raises:
        ConfigError: there is no model at that place.
    """
    from transformers import AutoConfig

    with _readable(base_model, "model") as place:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)


def load_base_model(
    base_model: str,
    *,
    task: str,
    dtype: str = "float32",
    quantization: Quantization = "none",
    num_labels: int | None = None,
    id2label: Sequence[str] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: Any = None,
) -> "PreTrainedModel":
    """Load the frozen model that an adapter sits on.

    Args:
        base_model: Hub id or folder.
        task: ``sequence_classification``, ``causal_lm`` or ``multiple_choice`` (a causal model).
        dtype: ``float32``, ``bfloat16`` or ``float16``: of the weights that are not quantised, and of compute.
        quantization: ``none``, ``8bit`` (LLM.int8) or ``4bit`` (NF4, double quantisation) by bitsandbytes. What
            stays unquantised is then float32, as PEFT's k-bit recipe has it, in training and in evaluation.
        num_labels: Classes, for classification.
        id2label: Class names in index order; gives ``num_labels`` too.
        revision: Commit, tag or branch of a hub id.
        trust_remote_code: Let code from the model's repository run.
        device_map: Handed to ``from_pretrained``; None leaves placement to Trainer (quantised: the default device).

    Raises:
        ConfigError: not a model, no safetensors, or an impossible setting.
        MissingDependencyError: quantization without bitsandbytes.
    """
    import transformers

    if task not in _AUTO_CLASSES:
        raise ConfigError(f"task must be one of {', '.join(_AUTO_CLASSES)}, got {task!r}")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if task == "sequence_classification":
        # Decoders classify at the last token that is not padding, so both sides must agree on what that is.
        options["pad_token_id"] = load_tokenizer(base_model, **options).pad_token_id
        options |= _label_options(num_labels, id2label)
    else:
        _require_decoder(base_model, options)
    if quantization != "none":
        options["quantization_config"] = quantization_config(
            quantization, compute_dtype=_torch_dtype(dtype), task=task
        )
    with _readable(base_model, "model") as place, _quiet_heads():
        model = getattr(transformers, _AUTO_CLASSES[task]).from_pretrained(
            place, dtype=_torch_dtype(dtype), use_safetensors=True, device_map=device_map, **options
        )
    if quantization != "none":
        model = prepare_quantized(model)
    elif task == "sequence_classification":
        _cast_inputs_of_heads(model)
    return model.eval()


def _cast_inputs_of_heads(model: "PreTrainedModel") -> None:
    """Let a head be float32 on a coarser base: its input takes the dtype that its weights have at the time.

    PEFT trains a copy of the head, which takes the hook along.
    """

    def cast(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = next(module.parameters()).dtype
        return tuple(
            x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
        )

    for name, module in model.named_children():
        if name in HEADS and any(True for _ in module.parameters()):
            module.register_forward_pre_hook(cast)


def load_adapter(
    base: "PreTrainedModel",
    posterior: "Posterior | str | PathLike[str]",
    *,
    adapter_name: str = "default",
    check_base: bool = True,
) -> "PeftModel":
    """Put an adapter's mean on a base model, for inference.

    Args:
        base: Model from :func:`load_base_model`; it is modified in place, as PEFT does.
        posterior: Posterior, or the folder of a posterior or plain PEFT adapter.
        adapter_name: Name inside the PEFT model.
        check_base: Refuse an adapter whose recorded base weights are not those of ``base``.

    Returns:
        PEFT model in eval mode holding the mean; ``posterior.sampled(model, k)`` puts draws into it.

    Raises:
        PosteriorFormatError: the adapter belongs to another base model or does not fit this one.
        OutputError: the temporary folder, through which PEFT reads the adapter, cannot be written.
    """
    from peft import PeftModel
    from safetensors.torch import save_file

    if not isinstance(posterior, Posterior):
        posterior = Posterior.from_pretrained(posterior)
    if check_base:
        _check_base(base, posterior)
    with tempfile.TemporaryDirectory() as folder:  # PEFT's own reader decides what goes where
        try:
            Path(folder, "adapter_config.json").write_text(json.dumps(dict(posterior.adapter_config)))
            tensors = {key: value.detach().cpu().contiguous() for key, value in posterior.mean.items()}
            save_file(tensors, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise scratch_error(error) from error
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys.*")
                # PEFT asks transformers by a name that will go; nothing for a user to do
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                model = PeftModel.from_pretrained(base, folder, adapter_name=adapter_name)
        except (RuntimeError, ValueError, KeyError, UserWarning) as error:
            reason = " ".join(str(error).split())
            raise PosteriorFormatError(
                f"the adapter does not fit {_name(base)}: {reason[:200]}; is this its base model and task?"
            ) from error
    return model.eval()


def num_labels_of(posterior: Posterior) -> int | None:
    """Number of classes of a classification adapter, from the head it carries; None without one."""
    for key, value in posterior.mean.items():
        if key.endswith(_HEAD_WEIGHTS) and ".lora_" not in key and value.ndim == 2:
            return int(value.shape[0])
    return None


def _label_options(num_labels: int | None, id2label: Sequence[str] | None) -> dict[str, Any]:
    """Configuration overrides that give a classifier its classes."""
    names = list(id2label) if id2label is not None else None
    count = num_labels if num_labels is not None else len(names or ())
    if count < 2 or (names is not None and len(names) != count):
        raise ConfigError(
            f"sequence_classification needs two classes or more, got {num_labels=}, {id2label=}"
        )
    names = names or [f"LABEL_{index}" for index in range(count)]
    return {
        "num_labels": count,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def _require_decoder(base_model: str, options: dict[str, Any]) -> None:
    """Refuse an encoder: transformers would load it with a language head that sees the future."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    config = load_model_config(base_model, **options)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ConfigError(
            f"base_model: {base_model} is an encoder ({config.model_type}); use it with "
            "task: sequence_classification, or give a causal language model"
        )


def _torch_dtype(dtype: str) -> torch.dtype:
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


def _check_base(base: "PreTrainedModel", posterior: Posterior) -> None:
    """Compare the base weights that the posterior was trained on with those at hand."""
    recorded = posterior.meta.base_model.get("fingerprint")
    at_hand = (
        fingerprint_weights(_name(base), getattr(base.config, "_commit_hash", None)) if recorded else None
    )
    if recorded and at_hand and recorded != at_hand:
        raise PosteriorFormatError(
            f"the adapter was trained on {posterior.meta.base_model.get('id')} (weights {recorded[:8]}), "
            f"not on {_name(base)} (weights {at_hand[:8]}); give its own base_model"
        )


def _name(base: "PreTrainedModel") -> str:
    """Where a base model came from."""
    return str(getattr(base.config, "_name_or_path", "") or type(base).__name__)


@contextmanager
def _readable(base_model: str, what: str) -> Iterator[str]:
    """Folder or hub id to load from; the many ways in which ``from_pretrained`` says no become one line."""
    path = Path(base_model).expanduser()
    if not path.is_dir() and not _HUB_ID.fullmatch(base_model):
        raise ConfigError(f"base_model: no folder {base_model}; give a model folder or a hub id")
    try:
        yield str(path) if path.is_dir() else base_model
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"base_model: cannot load a {what} from {base_model}: {reason}") from error


@contextmanager
def _quiet_heads() -> Iterator[None]:
    """Hush the notice that a new classification head is new: it is, and it is trained with the adapter."""
    from transformers.utils import logging as notices

    level = notices.get_verbosity()
    bars = notices.is_progress_bar_enabled()
    notices.set_verbosity_error()
    notices.disable_progress_bar()
    try:
        yield
    finally:
        notices.set_verbosity(level)
        if bars:
            notices.enable_progress_bar()
