"""Whether the adapter that a model holds is of the layout that a posterior was made for.

After PEFT's hot-swap a model can hold another adapter under the same name: of another rank, so that shapes differ, or
of another ``lora_alpha / r``, where every shape fits and the draws would be scaled wrongly.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlora.errors import PosteriorFormatError
from vlora.posterior.keys import unwrap

__all__ = ["check_fit", "check_scaling"]

_FACTOR = re.compile(r"\.lora_(embedding_)?A(\.weight)?$")


def check_fit(
    model: nn.Module,
    live: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    adapter_config: Mapping[str, Any],
    adapter_name: str,
) -> None:
    """Refuse to write ``values`` into tensors of other shapes, or under another LoRA scaling.

    Args:
        model: PEFT model, possibly wrapped.
        live: Key -> tensor of the model.
        values: Key -> value of the posterior.
        adapter_config: The posterior's ``adapter_config.json``.
        adapter_name: Name under which the adapter is loaded.

    Raises:
        PosteriorFormatError: A shape or a scaling differs; nothing was written.
    """
    for key, tensor in live.items():
        if tensor.shape != values[key].shape:
            raise PosteriorFormatError(
                f"the model holds {key!r} with shape {tuple(tensor.shape)}, the posterior with "
                f"{tuple(values[key].shape)}: another rank was loaded or hot-swapped in; load the posterior's folder"
            )
    check_scaling(model, live, adapter_config, adapter_name)


def check_scaling(
    model: nn.Module, keys: Mapping[str, Tensor], adapter_config: Mapping[str, Any], adapter_name: str
) -> None:
    """Refuse if a LoRA layer applies another scaling than ``alpha / r`` (rsLoRA: ``alpha / sqrt(r)``) of the config.

    Args:
        model: PEFT model, possibly wrapped.
        keys: Keys of the adapter.
        adapter_config: Content of ``adapter_config.json``; without ``lora_alpha`` nothing is checked.
        adapter_name: Name under which the adapter is loaded.

    Raises:
        PosteriorFormatError: A scaling differs.
    """
    if adapter_config.get("peft_type") != "LORA" or "lora_alpha" not in adapter_config:
        return
    model = unwrap(model)
    for key in keys:
        name, found = _FACTOR.subn("", key)
        if not found:
            continue
        applied = getattr(model.get_submodule(name), "scaling", {}).get(adapter_name)
        expected = _scaling(adapter_config, name)
        if applied is not None and not math.isclose(applied, expected, rel_tol=1e-6):
            raise PosteriorFormatError(
                f"the model scales {name!r} by {applied:g}, the posterior's adapter_config says {expected:g}: another "
                "adapter was hot-swapped in, or the scale was changed; load the posterior's own folder"
            )


def _scaling(config: Mapping[str, Any], name: str) -> float:
    rank = _of_module(config, "r", "rank_pattern", name)
    alpha = _of_module(config, "lora_alpha", "alpha_pattern", name)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], key: str, patterns: str, name: str) -> float:
    """Value for a module: of the first pattern that its name ends with, as PEFT matches them, else the common one."""
    name = name.removeprefix("base_model.model.")
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(config[key])
