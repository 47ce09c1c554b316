"""The parameter vectors of one model that items are scored under: its mean and its draws.

Side by side where the adapter allows it (:mod:`vlora.stacked`), else one after another.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from vlora.errors import ConfigError
from vlora.eval.forward import Draws
from vlora.eval.head import head_is_apart
from vlora.eval.tree_forward import sharing_obstacle
from vlora.stacked import Stack, obstacle

__all__ = ["Variants"]

logger = logging.getLogger(__name__)

_STACK_BYTES = 2**31  # most memory for the stacked weights


class Variants:
    """Parameter vectors, and how they are put into the model.

    Attributes:
        model: The model.
        which: Draw numbers, None for the mean.
        width: Most vectors that are held at once.
        shares: Whether prompts share their forward passes where they share tokens.
    """

    def __init__(self, draws: Draws, which: Sequence[int | None]) -> None:
        """Prepare the vectors; weights are drawn here, once.

        Raises:
            ConfigError: ``scoring`` is ``batched`` and the adapter or the model does not allow it.
        """
        self.model: nn.Module = draws.model
        self.which = list(which)
        self._draws = draws
        self._stack = self._stacked()
        self.shares = draws.scoring != "loop" and self._can_share()
        self.width = 1 if self._stack is None else len(self.which)

    @cached_property
    def apart(self) -> bool:
        """Whether the output head can be run one vector at a time behind a trunk that holds several; of causal LMs."""
        with torch.inference_mode():
            return self._stack is not None and head_is_apart(self.model)

    def fit(self, longest: int, max_tokens: int) -> None:
        """Hold no more vectors at once than fit a batch, unless they share blocks, which pays more.

        Args:
            longest: Tokens of the longest row.
            max_tokens: Tokens that suit a batch.
        """
        if self._stack is not None and not self._stack.shared:
            self.width = min(self.width, max(1, max_tokens // max(1, longest)))

    def narrow(self) -> bool:
        """Hold half as many vectors from now on; False when it is one already."""
        if self.width == 1:
            return False
        self.width //= 2
        logger.warning("not enough memory: %d draws side by side from here on", self.width)
        return True

    def parts(self) -> list[slice]:
        """Consecutive vectors that are held together."""
        return [slice(i, min(i + self.width, len(self.which))) for i in range(0, len(self.which), self.width)]

    @contextmanager
    def holding(self, part: slice) -> Iterator[int]:
        """Put these vectors into the model, without gradients; it then takes every row once per vector.

        Yields:
            Number of vectors held.
        """
        if self._stack is not None:
            with self._stack.active(part) as count, torch.inference_mode():
                yield count
            return
        with self._draws.at(self.which[part][0]), torch.inference_mode():
            yield 1

    def cost(self, count: int) -> float:
        """Forward passes that a pass with ``count`` vectors amounts to, by the blocks that run."""
        return float(count) if self._stack is None else self._stack.cost(count)

    def _stacked(self) -> Stack | None:
        """All vectors side by side, or None with one line that says why not."""
        draws = self._draws
        if draws.scoring == "loop" or draws.posterior is None or self.which == [None]:
            return None
        reason = obstacle(draws.model, draws.posterior) or self._too_large()
        if reason is None:
            return Stack.of_draws(draws.model, draws.posterior, self.which, antithetic=draws.antithetic)
        if draws.scoring == "batched":
            raise ConfigError(f"scoring: batched cannot be had: {reason}; use auto or loop")
        logger.warning("draws run one after another: %s", reason)
        return None

    def _too_large(self) -> str | None:
        assert self._draws.posterior is not None
        needed = len(self.which) * sum(4 * value.numel() for value in self._draws.posterior.hess.values())
        return f"{len(self.which)} of them take {needed / 2**30:.0f} GiB" if needed > _STACK_BYTES else None

    def _can_share(self) -> bool:
        reason = sharing_obstacle(self.model)
        if reason is not None:
            logger.info("every prompt is run in full: %s", reason)
        return reason is None

    @property
    def is_fast(self) -> bool:
        """Whether anything is done otherwise than one vector after another with every prompt in full."""
        return self._stack is not None or self.shares

    def first(self, count: int) -> "Variants":
        """The first vectors alone, sharing their weights with these."""
        few = copy(self)
        few.which, few.width = self.which[:count], min(self.width, count)
        return few

    def plain(self) -> "Variants":
        """The same vectors one after another, with prompts in full: what everything else must agree with."""
        return Variants(replace(self._draws, scoring="loop"), self.which)
