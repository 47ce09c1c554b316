"""Which live tensor of a PEFT model belongs to which key of an adapter file.

PEFT derives the keys by rules of its own for each method: it drops adapter names and wrappers, adds shared projections
and index tensors, renames DoRA's magnitude. Instead of repeating those rules, the model's live tensors are sent through
them in place of a state dict, and come out under their keys. What does not come out as the very same tensor was
computed on the way; such an adapter has no posterior over what is saved, and is refused with the alternative.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vlora.errors import PosteriorFormatError

__all__ = ["adapter_tensors", "saved_tensors", "unsaved_parameters", "unwrap"]

PROMPT_KEY = "prompt_embeddings"
"""Key of the virtual tokens of every prompt-learning method."""

_REASONS = {
    "P_TUNING": "PEFT saves what the prompt encoder computes, not the encoder that is trained; use prompt_tuning",
    "PREFIX_TUNING": "PEFT saves what the projection computes, not the projection that is trained; set "
    "prefix_projection: false",
    "CARTRIDGE": "PEFT saves frozen and trained virtual tokens as one tensor; set num_frozen_tokens: 0",
    "CPT": "its forward pass rewrites the trained tensor (it projects it), so no draw survives; use prompt_tuning",
    "VBLORA": "PEFT saves the softmax of the largest logits, not the logits; set save_only_topk_weights: false",
    "XLORA": "PEFT takes the layers of its classifier for adapters of that number and leaves them out of the file; "
    "train the experts themselves with lora",
    "ADALORA": "the saved factors are cut to the ranks that are left, the trained are not; leave the ranks as they are",
}


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP (``module``) and ``torch.compile`` (``_orig_mod``)."""
    for attribute in ("module", "_orig_mod"):
        inner = model.__dict__.get("_modules", {}).get(attribute)
        if inner is not None:
            return unwrap(inner)
    return model


def adapter_tensors(
    model: nn.Module, keys: Iterable[str], adapter_name: str = "default"
) -> dict[str, Tensor]:
    """Live parameters (or buffers) of a PEFT model for the keys of an adapter file.

    Args:
        model: PEFT model that carries the adapter; wrappers of DDP and ``torch.compile`` are looked through.
        keys: Keys as in ``adapter_model.safetensors``.
        adapter_name: Name under which the adapter is loaded.

    Returns:
        Key -> tensor of the model (not a copy), in alphabetical order. A tensor with several keys (tied weights) is
        there under the first of them, so that writing by this table writes each tensor once.

    Raises:
        PosteriorFormatError: The model has no tensor for a key, or PEFT saves a computed value under it.
    """
    model, wanted = unwrap(model), sorted(keys)
    tensors = saved_tensors(model, adapter_name)
    if not tensors.keys() >= set(wanted):  # base embeddings are saved under their own names
        tensors = {**_live_tensors(model), **tensors}
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise PosteriorFormatError(
            f"the model has no tensor for {len(missing)} of {len(wanted)} adapter keys, first {missing[0]!r}; "
            f"is the adapter loaded under the name {adapter_name!r}, and is this its base model?"
        )
    return _once_each({key: tensors[key] for key in wanted})


def saved_tensors(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Every key that PEFT saves for an adapter, except base embeddings, with the live tensor behind it.

    Args:
        model: PEFT model without wrappers.
        adapter_name: Name under which the adapter is loaded.

    Returns:
        Key -> tensor of the model (not a copy). Tied tensors appear under each of their keys.

    Raises:
        PosteriorFormatError: There is no such adapter, or PEFT saves a computed value instead of a tensor.
    """
    from peft import get_peft_model_state_dict

    config = _config(model, adapter_name)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind == "XLORA":
        raise _refusal(kind, "internal_xlora_classifier")
    prompt = _prompt_tensor(model, kind, config, adapter_name) if config.is_prompt_learning else None
    live = _live_tensors(model)
    saved = get_peft_model_state_dict(
        model, state_dict=live, adapter_name=adapter_name, save_embedding_layers=False
    )
    if prompt is not None:
        saved[PROMPT_KEY] = prompt
    known = {id(tensor) for tensor in live.values()}
    for key, tensor in saved.items():
        if id(tensor) not in known:
            raise _refusal(kind, key)
    return saved


def unsaved_parameters(
    model: nn.Module, tensors: Mapping[str, Tensor], trained: Iterable[Tensor], adapter_name: str = "default"
) -> list[str]:
    """Names of trained parameters that PEFT does not save with this adapter; other adapters' are left out.

    Args:
        model: PEFT model without wrappers.
        tensors: What is saved, from :func:`saved_tensors` or :func:`adapter_tensors`.
        trained: Parameters that training changes or has changed.
        adapter_name: The adapter that is saved.
    """
    saved = {id(tensor) for tensor in tensors.values()}
    lost = {id(parameter) for parameter in trained} - saved
    others = set(getattr(model, "peft_config", {})) - {adapter_name}
    names = ((name, id(parameter)) for name, parameter in model.named_parameters())
    return [name for name, address in names if address in lost and not others & set(name.split("."))]


def _config(model: nn.Module, adapter_name: str) -> Any:
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, Mapping) or adapter_name not in adapters:
        raise PosteriorFormatError(
            f"the model carries no such adapter ({', '.join(adapters or ()) or 'it is no PEFT model'}); is the adapter "
            f"loaded under the name {adapter_name!r}?"
        )
    return adapters[adapter_name]


def _live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by every name it has; and SHiRA's indices, which it keeps in a plain dictionary."""
    live: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        own = {**module._buffers, **module._parameters}
        live |= {start + name: tensor for name, tensor in own.items() if tensor is not None}
        places = module.__dict__.get("shira_indices", {})
        live |= {f"{start}shira_indices.{name}": tensor for name, tensor in places.items()}
    return live


def _prompt_tensor(model: Any, kind: str, config: Any, adapter_name: str) -> Tensor:
    """The tensor of virtual tokens that is trained, saved and used as it is.

    At inference every method reads it from ``embedding.weight``; in training, only those without an encoder do.
    """
    encoder = model.prompt_encoder[adapter_name]
    encoded = kind in ("P_TUNING", "CPT") or hasattr(encoder, "transform")
    if encoded and not config.inference_mode:
        raise _refusal(kind, PROMPT_KEY)
    return encoder.embedding.weight


def _refusal(kind: str, key: str) -> PosteriorFormatError:
    reason = _REASONS.get(kind, "PEFT saves a computed value instead of a tensor of the model")
    return PosteriorFormatError(f"no posterior over {key!r} of {kind}: {reason}")


def _once_each(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    first = {}
    for key, tensor in tensors.items():
        if id(tensor) not in seen:
            first[key] = tensor
            seen.add(id(tensor))
    return first
