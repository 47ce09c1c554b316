"""Element-wise merge methods on tiles of whole checkpoints: float32 in, float32 out, in place where possible.

A rule sees one tile of every input of a tensor (the base first where it needs one) and gives the merged tile; what it
must know about the whole tensor it finds in a reading pass before. The formulas are those of the pure methods of the
same name (:mod:`vlora.merge.methods.ties` and the others), on differences to the base where a method is about updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.tiles import TILE

if TYPE_CHECKING:
    from vlora.merge.checkpoints.headers import TensorEntry
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["Copy", "NotFinite", "Rule", "WeightedMean", "WeightedSum", "differences", "elect"]


class Rule:
    """How one tensor is made; subclasses say what they need."""

    by_rows: bool = False
    """Whether rows must stay whole."""
    passes: int = 1
    """Usual number of times that the inputs are read."""
    tiles: int = 0
    """Tiles of working memory besides one per input."""
    tile_entries: int = TILE
    """Entries of a tile; more for rules whose work per tile has a fixed part."""
    tile_inputs: Sequence[int] | None = None
    """Numbers of the inputs that :meth:`tile` sees; all of them if None."""

    def bytes_read(self, inputs: "Sequence[TensorEntry]") -> int:
        """Bytes that all passes read, samples left out."""
        return self.passes * sum(entry.nbytes for entry in inputs)

    def held(self, shape: tuple[int, ...]) -> int:
        """Bytes that are held while the tensor is made, besides blocks and tiles."""
        return 0

    def kept(self) -> int:
        """Bytes of what the rule itself has in memory from the plan on, such as an adapter's factors."""
        return 0

    def operations(self, shape: tuple[int, ...]) -> float:
        """Floating-point operations where they outweigh reading, for an estimate of the time."""
        return 0.0

    def prepare(self, stream: "TensorStream") -> Any:
        """What the rule must know about the whole tensor."""
        return None

    def findings(self, known: Any) -> dict[str, Any]:
        """What a reader should know about the tensor, as plain data; numbers are those of models that take part."""
        return {}

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The merged tile.

        Args:
            place: Entries of the tensor.
            values: One float32 tile per input; may be overwritten.
            known: What :meth:`prepare` found.
        """
        raise TypeError(f"{type(self).__name__} has no rule for a tile")


@dataclass
class Copy(Rule):
    """The first input as it is."""

    checked: bool = True
    """Whether NaN and infinity are refused; masks among the buffers may hold them."""

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The tile itself."""
        return values[0]


@dataclass
class WeightedMean(Rule):
    """``linear`` on weights: sum_t c_t W_t, coefficients of sum 1."""

    coefficients: Sequence[float]

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """The weighted sum."""
        total = values[0].mul_(self.coefficients[0])
        for value, coefficient in zip(values[1:], self.coefficients[1:], strict=True):
            total.add_(value, alpha=coefficient)
        return total


@dataclass
class WeightedSum(Rule):
    """``task_arithmetic``: W_0 + sum_t c_t (W_t - W_0)."""

    coefficients: Sequence[float]
    tiles: int = 1

    def tile(self, place: range, values: list[Tensor], known: Any) -> Tensor:
        """Base and weighted sum of the differences, added once."""
        updates = differences(values)
        total = updates[0].mul_(self.coefficients[0])
        for update, coefficient in zip(updates[1:], self.coefficients[1:], strict=True):
            total.add_(update, alpha=coefficient)
        return total.add_(values[0])


def differences(values: Sequence[Tensor]) -> list[Tensor]:
    """W_t - W_0 in place of W_t, for a tile of the base and of the models."""
    base, *models = values
    return [model.sub_(base) for model in models]


def elect(tensors: Sequence[Tensor], weights: Sequence[float], normalise: bool) -> Tensor:
    """:func:`vlora.merge.methods.ties.elect_and_merge` without comparisons, in place of ``tensors``.

    With e the elected sign, relu(e w_t t_t) is |w_t t_t| where an entry agrees and 0 elsewhere; arithmetic on signs is
    vectorised where comparisons and masks of torch are not (some 5 times the speed on a CPU).
    """
    weighted = [t.mul_(w) if w != 1 else t for w, t in zip(weights, tensors, strict=True)]
    elected = weighted[0] + weighted[1] if len(weighted) > 1 else weighted[0].clone()
    for tensor in weighted[2:]:
        elected.add_(tensor)
    elected.sign_()
    for tensor in weighted:
        tensor.mul_(elected).relu_()
    total = weighted[0] + weighted[1] if len(weighted) > 1 else weighted[0].clone()
    for tensor in weighted[2:]:
        total.add_(tensor)
    if normalise:
        first = abs(weights[0])
        counted = weighted[0].sign_() if first == 1 else weighted[0].sign_().mul_(first)
        for tensor, weight in zip(weighted[1:], weights[1:], strict=True):
            counted.add_(tensor.sign_(), alpha=abs(weight))
        # Where nobody agrees the total is 0, and any positive divisor leaves it so.
        total.div_(counted.clamp_min_(torch.finfo(torch.float32).tiny))
    return total.mul_(elected)


class NotFinite(CheckpointError):
    """An input holds NaN or infinity; the engine adds which one and where."""

    def __init__(self, number: int) -> None:
        super().__init__(f"input {number} holds NaN or infinity")
        self.number = number
