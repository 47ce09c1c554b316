"""How PEFT lays a LoRA adapter out: keys, per-module ranks and scalings; reading them and writing them anew.

Module names are those of the base model (``model.layers.0.self_attn.q_proj``); keys carry PEFT's prefix
``base_model.model.`` and the factor (``.lora_A.weight``, or ``.lora_embedding_A`` for embeddings). A has the rank
on its first axis, B on its second, for every kind of layer.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BASE_CHANGING", "LoraKeys", "module_rank", "module_scaling", "split_keys", "with_ranks"]

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Values of ``init_lora_weights`` (or their beginnings) that change the base weights too, again at every load."""

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<stem>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.weight)?$")


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
    rank = module_rank(config, module)
    alpha = _resolve(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def module_rank(config: Mapping[str, Any], module: str) -> int:
    """LoRA rank of one module according to the configuration."""
    return _resolve(config.get("rank_pattern"), module, config["r"])


def with_ranks(
    config: Mapping[str, Any], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """PEFT configuration that says these ranks and scalings, for inference.

    A configuration that says them already is kept. Otherwise ``r`` and ``lora_alpha`` take the commonest values and
    the other modules get patterns, with ``alpha = scaling * rank`` throughout: an rsLoRA scaling alpha / sqrt(r)
    becomes an ordinary one, because PEFT does not take patterns with ``use_rslora`` everywhere.

    Args:
        config: Configuration of the adapter before.
        ranks: Module name -> rank of its factors.
        scales: Module name -> its scaling.
    """
    result = {**config, "inference_mode": True}
    if all(
        module_rank(config, m) == ranks[m] and _close(module_scaling(config, m), scales[m]) for m in ranks
    ):
        return result
    # Initialisations such as "orthogonal" put conditions on r, and would run again on load.
    result.update(use_rslora=False, init_lora_weights=True)
    alphas = {m: _alpha(scales[m], ranks[m]) for m in ranks}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    result.update(r=rank, lora_alpha=alpha)
    result["rank_pattern"] = {_exactly(m): r for m, r in ranks.items() if r != rank}
    result["alpha_pattern"] = {_exactly(m): value for m, value in alphas.items() if value != alpha}
    return result


def _resolve(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """First pattern that matches the module's name or the end of it after a dot, as in PEFT."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _alpha(scale: float, rank: int) -> float | int:
    """The alpha that gives this scaling at this rank: a whole number if one does, else exact to the last bit."""
    product = scale * rank
    if _close(product, round(product)):
        return round(product)
    near = (product, math.nextafter(product, math.inf), math.nextafter(product, -math.inf))
    return next((alpha for alpha in near if alpha / rank == scale), product)


def _exactly(module: str) -> str:
    return "^" + re.escape(module)


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-12)
