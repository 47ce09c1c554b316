"""A check before the fast way of scoring is trusted: two items, against every prompt in full under one draw at a time.

Stacked draws and token trees rest on how a model is put together (blocks one after another, masks and positions as
given). A model that is put together otherwise would give wrong numbers without any error, so two items are scored both
ways first; that costs two rows in full under two parameter vectors.
"""

import logging
from typing import TYPE_CHECKING

import torch

from vlora.errors import ConfigError, DataError
from vlora.eval.forward import Draws
from vlora.eval.sink import Sink
from vlora.eval.variants import Variants

if TYPE_CHECKING:
    from vlora.eval.score import Scorer

__all__ = ["trusted_variants"]

logger = logging.getLogger(__name__)

_TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-6,
}  # of a log-probability; 16-bit numbers differ by rounding
_COARSE = 0.5


def trusted_variants(scorer: "Scorer", draws: Draws, which: list[int | None]) -> Variants:
    """The parameter vectors, side by side and with shared prompts unless that gives other numbers in this model.

    Args:
        scorer: The items.
        draws: The model with its posterior draws.
        which: Draw numbers, None for the mean.

    Raises:
        ConfigError: ``scoring: batched`` was asked for and cannot be had, or gives other numbers.
    """
    variants = Variants(draws, which)
    if not variants.is_fast:
        return variants
    try:
        gap = _gap(scorer.few(), variants)
    except DataError:  # NaN, which the run itself will name with its item
        return variants
    if gap <= _TOLERANCE.get(next(draws.model.parameters()).dtype, _COARSE):
        return variants
    found = f"here it differs from one draw after another by {gap:.2g} in log-probability"
    if draws.scoring == "batched":
        raise ConfigError(f"scoring: batched cannot be had: {found}; use auto or loop")
    logger.warning("draws run one after another, every prompt in full: side by side, %s", found)
    return variants.plain()


def _gap(few: "Scorer", variants: Variants) -> float:
    """Largest difference between the two ways, under the first two vectors."""
    fast, plain = (_scores(few, way.first(2)) for way in (variants, variants.plain()))
    return max(abs(left - right) for left, right in zip(fast, plain, strict=True))


def _scores(few: "Scorer", variants: Variants) -> list[float]:
    """All scores of the items, one after another."""
    keys, names = [str(item) for item in range(few.num_items)], [str(draw) for draw in variants.which]
    sink = Sink(keys, names, whole=few.whole)
    few.run(variants, sink)
    values = [value for item in range(few.num_items) for value in sink.result(item)]
    if few.whole:
        return [
            one[name] / one["num_tokens"]
            for one in values
            for name in ("nll", "nll_sequence")
            if one.get(name)
        ]
    return [0.0 if number is None else number for value in values for number in value]
