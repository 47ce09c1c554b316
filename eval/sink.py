"""Where scores go while items are scored: which are wanted, what came out, and what it cost.

Log-probabilities are rounded to what float32 can tell, here and once, so that scores read back from disk are the same
bits as scores that were just made.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.errors import DataError

if TYPE_CHECKING:
    from vlora.eval.store import ScoreFile

__all__ = ["Sink", "draw_name"]

_DECIMALS = 7  # float32 log-probabilities carry seven digits


def draw_name(draw: int | None, antithetic: bool) -> str:
    """Name of a draw by its noise and sign: independent draw 1 is ``1+``, antithetic draw 1 is ``0-``."""
    if draw is None:
        return "mean"
    return f"{draw // 2}{'+-'[draw % 2]}" if antithetic else f"{draw}+"


class Sink:
    """Collects the scores of one model, in memory or in a file as well.

    Attributes:
        draws: Name of every parameter vector that is scored.
        seconds: Time spent so far.
        whole: Scores belong to all vectors together.
        tokens: Tokens through the whole model so far, a token below the first adapted block counting in part.
    """

    def __init__(
        self,
        keys: Sequence[str],
        draws: Sequence[str],
        *,
        file: "ScoreFile | None" = None,
        layouts: Sequence[Any] = (),
        tick: Callable[[int], object] = int,
        whole: bool = False,
        who: str = "the model",
        suffix: str = "",
    ) -> None:
        """Prepare for N items.

        Args:
            keys: Name of every item.
            draws: Name of every parameter vector.
            file: What keeps the scores on disk.
            layouts: What the file is to know about every item besides its scores.
            tick: Called with items times vectors as they are done.
            whole: Scores belong to all vectors together, as entropies of their mixture do.
            who: The model, for messages.
            suffix: What scores that belong to all vectors together depend on besides.
        """
        self.keys, self.file, self.layouts = list(keys), file, layouts
        self.draws = ["|".join(draws) + suffix] if whole else list(draws)
        self.seconds = self.tokens = 0.0
        self.whole, self._who = whole, who
        self._tick, self._size = tick, len(draws)
        self._known: dict[str, dict[str, Any]] = {draw: {} for draw in self.draws}
        for draw, scores in (file.scores if file is not None else {}).items():
            if draw in self._known:
                self._known[draw] = dict(scores)
        self._unwritten = [0.0, 0.0]
        self._since: float | None = None

    def wants(self, items: Sequence[int], part: slice = slice(None)) -> bool:
        """Whether any of these items lacks a score under any of these vectors."""
        return any(self.keys[item] not in self._known[draw] for draw in self._part(part) for item in items)

    def take(self, items: Sequence[int], part: slice, values: Sequence[Any], *, tokens: float = 0.0) -> None:
        """Keep scores of some items: float64 tensors [count, ...] or lists of ``count``; where ``whole`` one record.

        Raises:
            DataError: A score is NaN.
            OutputError: The file cannot be written.
        """
        self.spent(tokens=tokens)
        self._lap()
        draws = self._part(part)
        rows = [
            [value] if self.whole else _plain(value) if isinstance(value, Tensor) else value
            for value in values
        ]
        for item, row in zip(items, rows, strict=True):
            if _holds_nan(row):
                raise DataError(
                    f"{self._who} gives NaN instead of probabilities for {self._shown(item)}; check its weights and "
                    "those of the base model, and try dtype: float32"
                )
            for draw, value in zip(draws, row, strict=True):
                self._known[draw][self.keys[item]] = value
        if self.file is not None:
            keys = [self.keys[item] for item in items]
            seconds, tokens = self._unwritten
            layout = [self.layouts[item] for item in items]
            self.file.append(draws, keys, rows, layout=layout, seconds=seconds, tokens=tokens)
        self._unwritten = [0.0, 0.0]
        self._tick(len(items) * (self._size if self.whole else len(draws)))

    def spent(self, *, seconds: float = 0.0, tokens: float = 0.0) -> None:
        """Count costs."""
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        self._unwritten = [self._unwritten[0] + seconds, self._unwritten[1] + tokens]

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside the block; what is taken inside it is kept with the time until then."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._lap()
            self._since = None

    def _lap(self) -> None:
        """Count the time since the timed block began, or since the last lap in it."""
        if self._since is not None:
            now = time.perf_counter()
            self.spent(seconds=now - self._since)
            self._since = now

    def result(self, item: int) -> list[Any]:
        """Scores of one item under every vector, in their order."""
        return [self._known[draw][self.keys[item]] for draw in self.draws]

    def _part(self, part: slice) -> list[str]:
        return self.draws if self.whole else self.draws[part]

    def _shown(self, item: int) -> str:
        names = self.file.names if self.file is not None else {}
        return names.get(self.keys[item], f"item {item}")


def _plain(value: Tensor) -> list[Any]:
    """Rounded numbers; what cannot happen (minus infinity) is None, as JSON has it."""
    rounded = value.round(decimals=_DECIMALS)
    if torch.isfinite(rounded).all():
        return rounded.tolist()
    return [[None if entry == -torch.inf else entry for entry in row] for row in rounded.tolist()]


def _holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_nan(entry) for entry in value.values())
    if isinstance(value, list):
        return any(_holds_nan(entry) for entry in value)
    return isinstance(value, float) and value != value
