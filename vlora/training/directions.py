"""After training: the leading directions of the Fisher matrix over all tensors, if the configuration asks for them."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from vlora.errors import VloraError
from vlora.fisher import leading_fisher
from vlora.fisher.leading import check_linear
from vlora.posterior import Posterior
from vlora.posterior.keys import adapter_tensors, saved_tensors
from vlora.training.prepare import Prepared

__all__ = ["check_directions", "with_directions"]

logger = logging.getLogger(__name__)


def check_directions(run: Prepared) -> None:
    """Refuse before the first step what could not be measured after the last, and say what it will take.

    Raises:
        ConfigError: A trained tensor is not that of a linear layer.
    """
    count = run.config.directions
    if count is None:
        return
    tensors = adapter_tensors(run.model, saved_tensors(run.model))
    trained = _parameters({key: value for key, value in tensors.items() if value.requires_grad})
    check_linear(run.model, trained)
    entries = sum(parameter.numel() for parameter in trained.values())
    logger.info(
        "up to %d leading directions of %d entries: directions.safetensors takes %.3g MB, three times that in memory "
        "while they are measured",
        *(count, entries, 4e-6 * count * entries),
    )


def with_directions(posterior: Posterior, run: Prepared, batches: Iterable[Mapping[str, Any]]) -> Posterior:
    """The posterior with its leading directions, at the mean that ``run.model`` holds.

    A failure is logged and does not cost the trained posterior.

    Args:
        posterior: What was trained.
        run: The run.
        batches: Training rows in random order.
    """
    config = run.config
    if config.directions is None:
        return posterior
    try:
        found = leading_fisher(
            run.model,
            batches,
            parameters=_parameters(adapter_tensors(run.model, posterior.hess)),
            num_examples=posterior.meta.num_examples,
            directions=config.directions,
            max_examples=config.directions_examples,
            seed=config.seed,
        )
    except (VloraError, RuntimeError) as error:  # RuntimeError: memory
        reason = " ".join(str(error).split())[:200]
        logger.warning(
            "the leading directions were not measured (%s); the posterior is complete without them", reason
        )
        return posterior
    return replace(posterior, directions=found)


def _parameters(tensors: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    return {key: value for key, value in tensors.items() if isinstance(value, nn.Parameter)}
