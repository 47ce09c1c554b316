"""What can be merged: every adapter, and all of them together, checked before any arithmetic."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import torch

from vlora.errors import IncompatibleAdaptersError
from vlora.posterior import Posterior
from vlora.posterior.lora_layout import BASE_CHANGING, module_rank, split_keys

__all__ = ["check_adapter", "check_together"]

_VARIANTS = {
    "use_dora": "DoRA rescales the whole weight, so its update is not s B A",
    "lora_bias": "lora_bias adds a trained bias to B",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "kasa_config": "KaSA changes the base weight",
    "monteclora_config": "MonteCLoRA has further trained tensors",
    "arrow_config": "Arrow routes between adapters",
    "alora_invocation_tokens": "aLoRA is active on some tokens only",
    "target_parameters": "adapted parameters of expert stacks have three-dimensional updates",
    "layer_replication": "layer replication changes the base model",
    "trainable_token_indices": "trainable tokens are no LoRA update",
    "megatron_config": "Megatron layers are sharded",
}
_TENSORS = {
    "use_dora": "lora_magnitude_vector",
    "lora_bias": "lora_B.bias",
    "trainable_token_indices": "trainable_tokens_delta",
}
"""What a merge into the base model takes as it is -> its tensors."""
_BOUND = ("use_qalora", "arrow_config", "alora_invocation_tokens", "layer_replication")
"""What is no change of weights, so that PEFT (0.21) cannot merge it into the base either."""

_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def check_adapter(
    posterior: Posterior,
    name: str,
    *,
    ancestor: bool = False,
    into: Literal["adapter", "model"] = "adapter",
) -> None:
    """Refuse, by name, an adapter whose update is not the plain s B A of two matrices.

    Args:
        posterior: The adapter.
        name: For messages.
        ancestor: Whether the merge knows the posterior that it may have as its prior.
        into: What the merge writes, which decides what else can be done.

    Raises:
        IncompatibleAdaptersError: Which adapter, what about it, and the cure.
    """
    config = posterior.adapter_config
    if config.get("peft_type") != "LORA":
        raise IncompatibleAdaptersError(
            f"{name!r} is a {config.get('peft_type')} adapter; only LORA adapters can be merged"
        )
    for option, reason in _VARIANTS.items():
        if config.get(option):
            raise IncompatibleAdaptersError(
                f"{name!r} was trained with {option}: {reason}; {_cure(option, into)}"
            )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(BASE_CHANGING):
        raise IncompatibleAdaptersError(
            f"{name!r} was initialised with {start}, which also changes the base weights; convert it first with "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    prior = posterior.meta.prior
    if prior.get("kind", "zero") != "zero" and not ancestor:
        raise IncompatibleAdaptersError(
            f"{name!r} was trained under a prior of kind {prior['kind']!r}, not of mean zero; give ancestor: "
            f"{prior.get('folder') or 'FOLDER'} to merge it by gradient_matching with others of its lineage, or take "
            "the plain adapter (its folder without posterior.json and posterior.safetensors)"
        )
    _check_tensors(posterior, name)


def _cure(option: str, into: str) -> str:
    """What can be done about an adapter that is no plain pair of factors."""
    if option in _BOUND:
        return "no change of the base's weights does what it does, so that PEFT cannot merge it either; leave it out"
    if option in _TENSORS:
        if into == "model":
            return f"but the file holds no {_TENSORS[option]}, it is incomplete; save the adapter again"
        return "leave it out, or merge it alone into the base model (into: model)"
    if into == "model":
        return "merge it with PEFT's merge_and_unload, save the model, and give that as base_model to merge others into"
    return "leave it out, or merge it into the base model with PEFT's merge_and_unload"


def check_together(
    posteriors: Sequence[Posterior], names: Sequence[str], base_model: str | None = None
) -> None:
    """Refuse adapters that were not trained on one base model for one kind of task.

    Args:
        posteriors: The adapters.
        names: Their names, for messages.
        base_model: Id or folder that the user expects as the base of all of them.

    Raises:
        IncompatibleAdaptersError: Which two disagree, and in what.
    """
    for (first, first_name), (other, name) in combinations(zip(posteriors, names, strict=True), 2):
        _same_base(_base(first), first_name, _base(other), name)
        mine, theirs = (p.adapter_config.get("task_type") for p in (first, other))
        if mine != theirs:
            raise IncompatibleAdaptersError(
                f"{first_name!r} was trained for task_type {mine} and {name!r} for {theirs}; "
                "merge adapters of one task type"
            )
        _same_shapes(first, first_name, other, name)
    expected = (base_model or "").rstrip("/")
    known = [str(_base(posterior)["id"] or "").rstrip("/") for posterior in posteriors]
    if expected and any(known) and expected not in known:
        raise IncompatibleAdaptersError(
            f"base_model is {base_model!r}, but {names[0]!r} was trained on {known[0]!r}; "
            "correct base_model or leave it out"
        )


def _same_shapes(first: Posterior, first_name: str, other: Posterior, name: str) -> None:
    """One base model has one shape per module, whatever ids and paths say."""
    mine, theirs = (split_keys(posterior.mean)[0] for posterior in (first, other))
    for module in mine.keys() & theirs.keys():
        sizes = [
            (posterior.mean[keys[module].b].shape[0], posterior.mean[keys[module].a].shape[1])
            for posterior, keys in ((first, mine), (other, theirs))
        ]
        if sizes[0] != sizes[1]:
            raise IncompatibleAdaptersError(
                f"{module} is {sizes[0][0]} x {sizes[0][1]} for {first_name!r} and {sizes[1][0]} x {sizes[1][1]} for "
                f"{name!r}: they were trained on other architectures; merge adapters of one base model"
            )


def _check_tensors(posterior: Posterior, name: str) -> None:
    modules, rest = split_keys(posterior.mean)
    for key in rest:
        if key.endswith(_FACTORS):
            other = next(_FACTORS[i ^ 1] for i, end in enumerate(_FACTORS) if key.endswith(end))
            raise IncompatibleAdaptersError(
                f"{name!r} holds {key}, but its {other[1:].removesuffix('.weight')} is missing; the file is "
                "incomplete, save the adapter again"
            )
        if ".lora_" in key:
            raise IncompatibleAdaptersError(
                f"{name!r} holds {key}, which is not part of a plain pair of LoRA factors; it cannot be merged"
            )
    for keys in modules.values():
        a, b = posterior.mean[keys.a], posterior.mean[keys.b]
        if a.ndim != 2 or b.ndim != 2:
            raise IncompatibleAdaptersError(
                f"{name!r} adapts {keys.module} with {a.ndim}-dimensional factors (a convolution); "
                "only linear layers and embeddings can be merged"
            )
        rank = module_rank(posterior.adapter_config, keys.module)
        if a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise IncompatibleAdaptersError(
                f"{name!r}: {keys.module} has factors {tuple(b.shape)} and {tuple(a.shape)}, but its configuration "
                f"says r={rank}; restore the adapter_config.json that belongs to the weights"
            )
    for key, value in posterior.mean.items():
        if not torch.isfinite(value).all():
            raise IncompatibleAdaptersError(f"{name!r}: {key} holds NaN or infinity; leave this adapter out")


def _base(posterior: Posterior) -> dict[str, Any]:
    meta: Mapping[str, Any] = posterior.meta.base_model
    name = meta.get("id") or posterior.adapter_config.get("base_model_name_or_path") or None
    return {"id": name, "revision": meta.get("revision"), "fingerprint": meta.get("fingerprint")}


def _same_base(first: Mapping[str, Any], first_name: str, second: Mapping[str, Any], name: str) -> None:
    """Fingerprints of the weights decide where both are known, else ids."""
    by = "fingerprint" if first["fingerprint"] and second["fingerprint"] else "id"
    if first[by] and second[by] and first[by] != second[by]:
        what = "weights" if by == "fingerprint" else "model"
        raise IncompatibleAdaptersError(
            f"{first_name!r} was trained on {first['id']!r} and {name!r} on {second['id']!r}, which is not the same "
            f"{what}; an update of one model means nothing in another"
        )
