"""Keys of ``config.json`` that change what the same weights compute: heads, norms, positions, activations, windows.

Tensors of equal shapes say nothing about them: 8 heads of 4 have the shapes of 4 heads of 8. Configurations are
compared after their defaults are written out, because transformers 4 and 5 store them in different ways (``rope_theta``
and ``rope_scaling``, or ``rope_parameters``), and some programs write a default that others leave out. A key that only
some configurations have is not compared beyond that.
"""

from collections.abc import Mapping
from typing import Any

from vlora.merge.checkpoints.folders import is_tied

__all__ = ["WRITTEN_OUT", "function_changes"]

WRITTEN_OUT = ("head_dim", "num_key_value_heads", "rope_parameters", "rope_scaling", "rope_theta")
"""Keys that may differ in form and still mean the same."""

_KEYS = (
    "activation_function", "alibi", "attention_multiplier", "attn_logit_softcapping", "clip_qkv",
    "embedding_multiplier", "final_logit_softcapping", "head_dim", "hidden_act", "hidden_activation",
    "layer_norm_eps", "layer_norm_epsilon", "layer_types", "layernorm_epsilon", "logit_scale",
    "logits_scaling", "n_head", "norm_eps", "norm_topk_prob", "num_attention_heads",
    "num_experts_per_tok", "num_heads", "num_key_value_heads", "parallel_attn",
    "position_embedding_type", "query_pre_attn_scalar", "residual_multiplier", "rms_norm_eps",
    "rotary_dim", "rotary_emb_base", "rotary_pct", "routed_scaling_factor",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "sliding_window", "use_parallel_residual",
)  # fmt: skip


def function_changes(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keys that change the function and differ.

    Args:
        configs: Model -> ``config.json``, first the one that is kept.

    Returns:
        Key -> model -> value, of the models that have it. ``tie_word_embeddings`` is named only where the first model
        is tied and another is not: the other way round, the embedding stands for the output layer.
    """
    functions = {name: _function(config) for name, config in configs.items()}
    tied = {name: is_tied(config) for name, config in configs.items()}
    if next(iter(tied.values())):
        for name, value in tied.items():
            functions[name]["tie_word_embeddings"] = value
    found = {}
    for key in sorted({key for function in functions.values() for key in function}):
        values = {name: function[key] for name, function in functions.items() if key in function}
        if any(value != next(iter(values.values())) for value in values.values()):
            found[key] = values
    return found


def _function(config: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of one configuration and the configurations inside it, defaults written out."""
    found = {key: config[key] for key in _KEYS if key in config} | _rope(config)
    heads = found.get("num_attention_heads")
    if heads:
        found["num_key_value_heads"] = found.get("num_key_value_heads") or heads
        if config.get("hidden_size"):
            found["head_dim"] = found.get("head_dim") or config["hidden_size"] // heads
    if config.get("use_sliding_window") is False:
        found["sliding_window"] = None
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping):
            found |= {f"{key}.{inner}": content for inner, content in _function(value).items()}
    return found


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions in one form, whichever release of transformers wrote them."""
    new = config.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in new.values()):  # per kind of layer
        return {f"rope_parameters.{kind}": value for kind, value in new.items()}
    kept = {
        key: config[key] for key in ("rope_theta", "partial_rotary_factor") if config.get(key) is not None
    }
    values = {**kept, **(config.get("rope_scaling") or {}), **new}
    kind = values.pop("type", None)
    values["rope_type"] = values.get("rope_type") or kind or "default"
    return {
        key if "rope" in key or "rotary" in key else f"rope_{key}": value for key, value in values.items()
    }
