"""Posterior draws as ordinary PEFT adapters, one folder each, for servers that know adapters and no posteriors.

    out/draws.json       which posterior, how many draws, in pairs or not, at which width
    out/draw-0/          adapter_config.json, adapter_model.safetensors
    out/draw-1/          …

That is the layout vLLM loads with ``--lora-modules draw-0=out/draw-0 draw-1=out/draw-1 …``, and PEFT with
``PeftModel.load_adapter``. Averaging the probabilities of the S answers gives the posterior predictive.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.files import atomic_folder, check_output_folder
from vlora.posterior.calibration import calibrated, fitted_scale, identity
from vlora.posterior.draws import check_draws
from vlora.posterior.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, write_tensors
from vlora.posterior.posterior import Posterior

__all__ = ["INDEX", "export_draws", "largest_rank", "serving_problems"]

INDEX = "draws.json"
"""File that lists the draws."""


def export_draws(
    posterior: Posterior,
    output: str | os.PathLike[str],
    num_samples: int = 8,
    *,
    antithetic: bool = True,
    stored_width: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write draws 0 … S-1 as PEFT adapters, all or none.

    Args:
        posterior: Where to draw from, with the covariance of ``posterior.drawing(...)``.
        output: Folder to write; a former export there is replaced only with ``overwrite``.
        num_samples: Number of draws, S.
        antithetic: Draws 2j and 2j+1 mirror each other.
        stored_width: Draw at the width that ``vlora calibrate`` fitted, where it did.
        overwrite: Whether a former export may be replaced.

    Returns:
        The folder.

    Raises:
        ConfigError: The adapter has no posterior, or the number of draws does not fit.
        OutputExistsError: The folder holds something else, or an export and ``overwrite`` is false.
        OutputError: The place cannot be written.
        PosteriorFormatError: The fitted width belongs to another posterior.
    """
    if not posterior.has_hess:
        raise ConfigError(
            "the adapter has no posterior, so there is nothing to draw; use the folder as it is"
        )
    check_draws(posterior)
    if num_samples < 1 or (antithetic and num_samples % 2):
        raise ConfigError(f"num_samples must be at least 1, and even for antithetic draws, got {num_samples}")
    fitted = fitted_scale(posterior) if stored_width else None
    source = calibrated(posterior) if stored_width else posterior
    path = check_output_folder(output, INDEX, overwrite=overwrite)
    names = [f"draw-{k}" for k in range(num_samples)]
    index = {
        "format": 1,
        "adapters": names,
        "num_samples": num_samples,
        "antithetic": antithetic,
        "covariance": posterior.covariance,
        "std_scale": None if fitted is None else fitted["std_scale"],
        "posterior_sha256": identity(posterior),
        "base_model": posterior.adapter_config.get("base_model_name_or_path"),
    }
    with atomic_folder(path) as folder:
        for k, name in enumerate(names):
            (folder / name).mkdir()
            config = json.dumps(dict(posterior.adapter_config), indent=2, sort_keys=True) + "\n"
            (folder / name / ADAPTER_CONFIG).write_text(config, encoding="utf-8")
            write_tensors(folder / name / ADAPTER_WEIGHTS, source.sample(k, antithetic=antithetic))
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return path


def largest_rank(adapter_config: Mapping[str, Any]) -> int | None:
    """Largest rank of a LoRA adapter, what vLLM's ``--max-lora-rank`` must reach; None for other adapters."""
    ranks = [adapter_config.get("r"), *(adapter_config.get("rank_pattern") or {}).values()]
    known = [int(rank) for rank in ranks if isinstance(rank, (int, float)) and rank]
    return max(known) if known and adapter_config.get("peft_type") == "LORA" else None


def serving_problems(adapter_config: Mapping[str, Any]) -> list[str]:
    """What vLLM's LoRA loader is known not to take, in words; PEFT takes all of it."""
    found = []
    if adapter_config.get("peft_type") != "LORA":
        found.append(f"peft_type is {adapter_config.get('peft_type')}, not LORA")
    if adapter_config.get("use_dora"):
        found.append("it is a DoRA adapter")
    if adapter_config.get("modules_to_save"):
        found.append("it saves whole modules (modules_to_save)")
    if adapter_config.get("bias") not in (None, "none"):
        found.append("it trains biases")
    if adapter_config.get("rank_pattern") or adapter_config.get("alpha_pattern"):
        found.append("its modules differ in rank or alpha")
    return found
