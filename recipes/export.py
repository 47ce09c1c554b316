"""``vlora export``: posterior draws as adapters, and the command that serves them."""

import logging
import shlex
from pathlib import Path

from vlora.posterior import Posterior
from vlora.posterior.adapters import export_draws, largest_rank, serving_problems
from vlora.posterior.draws import known_covariance

__all__ = ["export_folder"]

logger = logging.getLogger(__name__)

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def export_folder(
    source: str,
    out: Path,
    num_samples: int,
    antithetic: bool,
    stored_width: bool,
    overwrite: bool,
    covariance: str = "independent",
) -> str:
    """Write the draws of a posterior folder; arguments as in :func:`vlora.posterior.adapters.export_draws`.

    ``covariance`` is that of the draws.

    Returns:
        What was written, and the command line that serves it with vLLM.

    Raises:
        VloraError: See there.
    """
    posterior = Posterior.from_pretrained(source).drawing(known_covariance(covariance))
    path = export_draws(
        posterior, out, num_samples, antithetic=antithetic, stored_width=stored_width, overwrite=overwrite
    )
    said = f"wrote {num_samples} adapters to {path}"
    problems = serving_problems(posterior.adapter_config)
    if problems:
        logger.warning("PEFT loads these adapters, vLLM may not: %s", "; ".join(problems))
        return said
    base = posterior.adapter_config.get("base_model_name_or_path") or "BASE_MODEL"
    rank = largest_rank(posterior.adapter_config) or 16
    room = next((size for size in _VLLM_RANKS if size >= rank), rank)
    modules = " ".join(shlex.quote(f"draw-{k}={path / f'draw-{k}'}") for k in range(num_samples))
    return (
        f"{said}\nvllm serve {shlex.quote(str(base))} --enable-lora --max-loras {num_samples} "
        f"--max-lora-rank {room} --lora-modules {modules}"
    )
