"""How PEFT lays a LoRA adapter out: keys, per-module ranks and scalings; reading them and writing them anew.

Module names are those of the base model (``model.layers.0.self_attn.q_proj``); keys carry PEFT's prefix
``base_model.model.`` and the factor (``.lora_A.weight``, or ``.lora_embedding_A`` for embeddings).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LoraKeys", "merged_config", "module_scaling", "split_keys"]

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<stem>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.weight)?$")
_SELECTORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class LoraKeys:
    """The two factor keys of one adapted module."""

    module: str
    """Name of the module in the base model."""
    stem: str
    """PEFT key up to the factor; curvature keys start with it."""
    a: str
    b: str
    embedding: bool = False
    """Whether the module is an embedding (its inputs are token ids, so it has no input Gram)."""


def split_keys(keys: Iterable[str]) -> tuple[dict[str, LoraKeys], list[str]]:
    """Sort the keys of an adapter file into LoRA modules and the rest.

    Returns:
        Module name -> its keys, for modules with both factors; and all other keys in file order.
    """
    found: dict[str, dict[str, str]] = {}
    kinds: dict[str, bool] = {}
    rest: list[str] = []
    for key in keys:
        match = _FACTOR.match(key)
        if match is None:
            rest.append(key)
            continue
        found.setdefault(match["stem"], {})[match["side"]] = key
        kinds[match["stem"]] = bool(match["kind"])
    modules = {}
    for stem, sides in found.items():
        if sides.keys() == {"A", "B"}:
            name = stem.removeprefix(_PREFIX)
            modules[name] = LoraKeys(name, stem, sides["A"], sides["B"], kinds[stem])
        else:
            rest += sides.values()
    return modules, rest


def module_scaling(config: Mapping[str, Any], module: str) -> float:
    """LoRA scaling of one module: alpha / r, or alpha / sqrt(r) for rsLoRA, patterns resolved as PEFT does."""
    rank = _resolve(config.get("rank_pattern"), module, config["r"])
    alpha = _resolve(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def module_rank(config: Mapping[str, Any], module: str) -> int:
    """LoRA rank of one module according to the configuration."""
    return _resolve(config.get("rank_pattern"), module, config["r"])


def merged_config(
    configs: list[dict[str, Any]], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """PEFT configuration of a merged adapter.

    The first configuration is kept where it already says the right ranks and scalings for all modules; otherwise
    ``r`` and ``lora_alpha`` take the commonest values and the other modules get patterns. Selectors that differ
    between the inputs become an explicit list of modules. The result is for inference.

    Args:
        configs: Configurations of the inputs.
        ranks: Module name -> rank of the merged factors.
        scales: Module name -> scaling of the merged factors.
    """
    config = {**configs[0], "inference_mode": True}
    if any(_selector(config, key) != _selector(other, key) for other in configs[1:] for key in _SELECTORS):
        config.update({**dict.fromkeys(_SELECTORS), "target_modules": sorted(ranks)})
    saved = sorted({name for other in configs for name in other.get("modules_to_save") or ()})
    config["modules_to_save"] = saved or None
    if len({other.get("bias", "none") for other in configs}) > 1:
        config["bias"] = "all" if any(other.get("bias") == "all" for other in configs) else "lora_only"
    if all(
        module_rank(config, m) == ranks[m] and _close(module_scaling(config, m), scales[m]) for m in ranks
    ):
        return config
    # Initialisations such as "orthogonal" put conditions on r, and would run again on load.
    config.update(use_rslora=False, init_lora_weights=True)
    rank = _commonest(ranks.values())
    alpha = _commonest(_tidy(scales[m] * ranks[m]) for m in ranks)
    config.update(r=rank, lora_alpha=alpha)
    config["rank_pattern"] = {_exactly(m): r for m, r in ranks.items() if r != rank}
    alphas = {m: _tidy(scales[m] * ranks[m]) for m in ranks}
    config["alpha_pattern"] = {_exactly(m): value for m, value in alphas.items() if value != alpha}
    return config


def _selector(config: Mapping[str, Any], key: str) -> Any:
    """Value of a module selector; PEFT saves sets as lists in any order."""
    value = config.get(key)
    return sorted(value) if isinstance(value, list) else value


def _resolve(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """First pattern that matches the module's name or the end of it after a dot, as in PEFT."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _exactly(module: str) -> str:
    return "^" + re.escape(module)


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _tidy(value: float) -> float | int:
    return round(value) if _close(value, round(value)) else value


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-12)
