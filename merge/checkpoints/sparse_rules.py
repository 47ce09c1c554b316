"""TIES, DARE and DELLA on tiles of whole checkpoints, as :mod:`vlora.merge.methods.ties` and its neighbours have them.

Trimming is per tensor, the weights of the whole tensor compared. Masks belong to the content of a model, to tensor and
place (:mod:`vlora.merge.checkpoints.masks`), so they differ from those of an adapter merge with the same seed. Signs
are elected in an order of the models' own: of three and more, a tie may round to either sign in another order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlora.merge.checkpoints.masks import MaskSource
from vlora.merge.checkpoints.rules import Rule, differences, elect
from vlora.merge.checkpoints.thresholds import KEEP_ALL, KthLargest, lowest_kept, shrink
from vlora.merge.methods.sparsify import keep_by_magnitude, keep_random

if TYPE_CHECKING:
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["Dare", "Della", "Ties"]

_PIECES, _LENGTH = 64, 1024  # sample of a tensor for the bracket of its threshold


@dataclass
class Ties(Rule):
    """W_0 + scale * elected mean (or sum) of the trimmed differences."""

    weights: Sequence[float]
    density: float = 0.2
    scale: float = 1.0
    normalise: bool = True
    order: Sequence[int] = ()
    passes: int = 2
    tiles: int = 3

    def prepare(self, stream: "TensorStream") -> list[float]:
        """Limit of every model: the exact magnitude below which its differences are trimmed."""
        numel = stream.tiling.numel
        count = max(1, int(self.density * numel))
        if count >= numel:
            return [KEEP_ALL] * len(self.weights)
        sampled = differences(stream.sample(_PIECES, _LENGTH))
        searches = [KthLargest(count, numel, sample) for sample in sampled]
        while not all(search.settled for search in searches):
            for _, values in stream.passes():
                for search, update in zip(searches, differences(values), strict=True):
                    search.add(
                        update.abs_()
                    )  # NaN and infinity are the largest, stay, and show in the result
            for search in searches:
                search.end_pass()
        return [lowest_kept(search) for search in searches]

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """Trim, elect, merge, add."""
        trimmed = [shrink(u, limit) for u, limit in zip(differences(values), known, strict=True)]
        trimmed, weights = _ordered(self.order, trimmed, self.weights)
        return values[0].add_(elect(trimmed, weights, self.normalise), alpha=self.scale)


@dataclass
class Dare(Rule):
    """W_0 + scale * sum (``elects`` false) or elected mean of the differences with dropped entries."""

    weights: Sequence[float]
    masks: Sequence[MaskSource]
    elects: bool
    density: float = 0.5
    scale: float = 1.0
    normalise: bool = True
    order: Sequence[int] = ()
    tiles: int = 4

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """Drop, rescale, merge, add."""
        updates, weights = _ordered(self.order, self._sparse(place, differences(values)), self.weights)
        if self.elects:
            merged = elect(updates, weights, self.normalise)
        else:
            merged = updates[0].mul_(weights[0])
            for update, weight in zip(updates[1:], weights[1:], strict=True):
                merged.add_(update, alpha=weight)
        return merged.mul_(self.scale).add_(values[0])

    def _sparse(self, place: range, updates: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(updates, self.masks, strict=True)
        return [keep_random(update, self.density, mask.uniform(place)) for update, mask in pairs]


@dataclass
class Della(Dare):
    """As ``dare_ties``, with drop probabilities that fall with the magnitude of an entry within its row."""

    epsilon: float = 0.2
    columns: int = 1
    by_rows: bool = field(default=True)

    def _sparse(self, place: range, updates: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for update, mask in zip(updates, self.masks, strict=True):
            rows = update.view(-1, self.columns)
            uniform = mask.uniform(place).view(-1, self.columns)
            found.append(keep_by_magnitude(rows, self.density, self.epsilon, uniform).flatten())
        return found


def _ordered(
    order: Sequence[int], updates: Sequence[Tensor], weights: Sequence[float]
) -> tuple[list[Tensor], list[float]]:
    """Updates and weights in an order that is not the list's; as they are where none is known."""
    wanted = order or range(len(weights))
    return [updates[i] for i in wanted], [weights[i] for i in wanted]
