"""PEFT configuration of a merged adapter, from those of its inputs."""

from collections.abc import Mapping
from typing import Any

from vlora.posterior.lora_layout import with_ranks

__all__ = ["merged_config"]

_SELECTORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def merged_config(
    configs: list[dict[str, Any]], ranks: Mapping[str, int], scales: Mapping[str, float]
) -> dict[str, Any]:
    """PEFT configuration of a merged adapter.

    The first configuration is kept where it already says the right ranks and scalings for all modules; see
    :func:`vlora.posterior.lora_layout.with_ranks`. Selectors that differ between the inputs become an explicit list
    of modules. The result is for inference.

    Args:
        configs: Configurations of the inputs.
        ranks: Module name -> rank of the merged factors.
        scales: Module name -> scaling of the merged factors.
    """
    config = dict(configs[0])
    if any(_selector(config, key) != _selector(other, key) for other in configs[1:] for key in _SELECTORS):
        config.update({**dict.fromkeys(_SELECTORS), "target_modules": sorted(ranks)})
    saved = sorted({name for other in configs for name in other.get("modules_to_save") or ()})
    config["modules_to_save"] = saved or None
    if len({other.get("bias", "none") for other in configs}) > 1:
        config["bias"] = "all" if any(other.get("bias") == "all" for other in configs) else "lora_only"
    return with_ranks(config, ranks, scales)


def _selector(config: Mapping[str, Any], key: str) -> Any:
    """Value of a module selector; PEFT saves sets as lists in any order."""
    value = config.get(key)
    return sorted(value) if isinstance(value, list) else value
