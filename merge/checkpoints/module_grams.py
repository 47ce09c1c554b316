"""The Grams of one linear layer of a whole model: where they lie, what their headers say, and the matrices themselves.

One matrix after the other is read, when its tensor is made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlora.grams import Gram, stored_gram
from vlora.merge.checkpoints.headers import TensorEntry
from vlora.merge.curvature.unit import unit_factor

if TYPE_CHECKING:
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["ModuleGrams"]

_SIDES = {"input_gram": 1, "activation_gram": 1, "output_gram": 0}


@dataclass(frozen=True)
class ModuleGrams:
    """Where the Grams of one linear layer of one model lie."""

    model: str
    module: str
    entries: Mapping[str, TensorEntry]
    """``input_gram`` (or its ``.vectors``, ``.values``, ``.tail``) and so on -> place."""
    transposed: bool = False
    """Whether the layer stores (inputs, outputs), as ``Conv1D`` does."""

    def size(self, kind: str) -> int | None:
        """Rows of a Gram; None if there is none of this kind."""
        entry = self.entries.get(kind) or self.entries.get(f"{kind}.vectors")
        return entry.shape[0] if entry else None

    def directions(self, kind: str) -> int | None:
        """Kept directions of a Gram in the short form; None for a whole one."""
        entry = self.entries.get(f"{kind}.vectors")
        return entry.shape[1] if entry else None

    def nbytes(self, kind: str) -> int:
        """Bytes in the file."""
        return sum(entry.nbytes for name, entry in self._of(kind).items())

    def not_square(self, kinds: Sequence[str]) -> str | None:
        """Which whole Gram is none, if any: a diagonal, as files for adapters may hold."""
        for kind in kinds:
            shape = self.entries[kind].shape if kind in self.entries else (1, 1)
            if len(shape) != 2 or shape[0] != shape[1]:
                return (
                    f"{kind} has the shape {shape}, and whole models take square Grams or leading directions, no "
                    "diagonals; gather it with vlora curvature"
                )
        return None

    def fits(self, kinds: Sequence[str], shape: tuple[int, ...]) -> bool:
        """Whether these Grams have the sizes of a tensor of this shape, as it is stored."""
        sides = shape[::-1] if self.transposed else shape
        return len(shape) == 2 and all(self.size(kind) == sides[_SIDES[kind]] for kind in kinds)

    def read(self, stream: "TensorStream", kind: str) -> tuple[Gram, float]:
        """The Gram in float32 or better, checked, and the factor that gives it mean diagonal 1.

        Raises:
            IncompatibleAdaptersError: It is not finite or has a negative trace.
        """
        found = stored_gram({name: stream.whole(entry) for name, entry in self._of(kind).items()}, kind)
        assert found is not None  # the plan looked
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return found, unit_factor(found, self.where)

    @property
    def where(self) -> str:
        """Model and layer, for messages."""
        return f"{self.model!r} in {self.module}"

    def _of(self, kind: str) -> dict[str, TensorEntry]:
        return {name: e for name, e in self.entries.items() if name == kind or name.startswith(f"{kind}.")}
