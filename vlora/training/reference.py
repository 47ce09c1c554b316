"""After training: does h order the weights as per-example squared gradients do? The check that needs the model."""

import logging
from dataclasses import replace

from vlora.data.pieces import shuffled_batches
from vlora.errors import VloraError
from vlora.fisher.health import reference_health
from vlora.posterior import Posterior
from vlora.posterior.spacing import spacing_health
from vlora.training.prepare import Prepared

__all__ = ["with_reference_health"]

logger = logging.getLogger(__name__)


_LEAST = 32
"""Rows below which the order of their mean squared gradient is mostly chance."""


def with_reference_health(
    posterior: Posterior, run: Prepared, *, batch_size: int, rows_seen: int
) -> Posterior:
    """The posterior with its health completed by a few rows' squared gradients at the mean.

    Rows are drawn from the validation set if the run has one, else from the training rows, which
    ``reference_held_out`` tells. The gradients are those of the labels in the data. A failure of this check
    is logged and does not cost the trained posterior.

    Args:
        posterior: What was trained; ``run.model`` holds its mean.
        run: The run; ``health_examples`` rows are looked at, none when it is 0.
        batch_size: Rows in one pass.
        rows_seen: Rows that training went through. A row costs here what it costs there, so no more than 2 % of
            them are looked at, but 32 in any case.
    """
    health = {**posterior.meta.health, **spacing_health(posterior.mean, posterior.std())}
    if run.config.health_examples:
        try:
            rows = run.validation if run.validation is not None else run.train
            batches = shuffled_batches(rows, run.collate, batch_size=batch_size, seed=run.config.seed)
            limit = min(run.config.health_examples, max(_LEAST, rows_seen // 50))
            held_out = run.validation is not None
            health |= reference_health(posterior, run.model, batches, max_examples=limit, held_out=held_out)
        except (VloraError, RuntimeError) as error:  # RuntimeError: memory
            reason = " ".join(str(error).split())[:200]
            logger.warning(
                "h was not compared with squared gradients (%s); the posterior is complete", reason
            )
    return replace(posterior, meta=replace(posterior.meta, health=health))
