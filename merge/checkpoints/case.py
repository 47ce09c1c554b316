"""What the rule of one tensor is chosen by, besides the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlora.merge.checkpoints.module_grams import ModuleGrams

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One tensor of a merge: what its rule depends on besides the method."""

    tensor: str
    """Its name, for masks and messages."""
    shape: tuple[int, ...]
    weights: Sequence[float]
    """Of the models that take part, none of them 0."""
    names: Sequence[str]
    """Their names, for messages."""
    contents: Sequence[str]
    """Hashes of what they hold, for masks and an order of their own."""
    from_base: bool
    """Whether the first input is the base."""
    matrix: bool = False
    """Whether it is a weight matrix and no table of embeddings: what methods on singular values take whole."""
    grams: Sequence[ModuleGrams] = ()
    """Curvature of every model; none where the tensor has none, or the method needs none."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method for this tensor."""

    @property
    def order(self) -> list[int]:
        """Numbers of the models in an order that does not depend on the list's.

        Sums of three numbers and more round differently in another order, and a sign election or a solver may turn
        that into more than rounding.
        """
        return sorted(range(len(self.weights)), key=lambda i: (self.contents[i], self.weights[i]))

    @property
    def columns(self) -> int:
        """Length of a row."""
        return self.shape[-1] if self.shape else 1

    def only(self, index: int) -> "Case":
        """One of the models alone, with weight 1."""
        return replace(
            self,
            weights=[1.0],
            names=[self.names[index]],
            contents=[self.contents[index]],
            grams=self.grams[index : index + 1],
        )

    def turned(self) -> "Case":
        """The same models in the opposite order."""
        return replace(
            self,
            weights=self.weights[::-1],
            names=self.names[::-1],
            contents=self.contents[::-1],
            grams=self.grams[::-1],
        )
