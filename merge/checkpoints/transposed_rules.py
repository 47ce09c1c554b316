"""Methods with curvature on layers that store a weight as (inputs, outputs), as ``Conv1D`` of GPT-2 does.

A rule by rows merges the weights of one output at a time, and these are a column here: strided reads all over the file.
So the matrices are held whole, transposed, merged by the rule in pieces of rows, and transposed back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.merge.checkpoints.gram_rules import GramRows
from vlora.merge.checkpoints.rules import NotFinite, Rule

if TYPE_CHECKING:
    from vlora.merge.checkpoints.headers import TensorEntry
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["OnTransposed"]


@dataclass
class OnTransposed(Rule):
    """A rule by rows on the transposed matrices of a layer that stores (inputs, outputs); all are held whole."""

    rule: GramRows
    tile_inputs: Sequence[int] | None = ()

    def prepare(self, stream: "TensorStream") -> tuple[Tensor, Any]:
        """The merged matrix as stored, flat in float32, and what the rule itself knew."""
        known = self.rule.prepare(stream)
        inputs, outputs = stream.job.shape
        whole = [torch.empty(inputs * outputs) for _ in stream.job.inputs]
        for place, values in stream.passes():
            for number, (matrix, value) in enumerate(zip(whole, values, strict=True)):
                if not value.isfinite().all():
                    raise NotFinite(number)
                matrix[place.start : place.stop] = value
        turned = [matrix.view(inputs, outputs).mT for matrix in whole]
        merged = torch.empty(inputs, outputs)
        step = max(1, self.rule.tile_entries // inputs)
        for start in range(0, outputs, step):
            stop = min(start + step, outputs)
            rows = [matrix[start:stop].contiguous().flatten() for matrix in turned]
            tile = self.rule.tile(range(start * inputs, stop * inputs), rows, known)
            merged[:, start:stop] = tile.view(-1, inputs).mT
        return merged.flatten(), known

    def findings(self, known: tuple[Tensor, Any]) -> dict[str, Any]:
        """As the rule's."""
        return self.rule.findings(known[1])

    def tile(self, place: range, values: list[Tensor], known: tuple[Tensor, Any]) -> Tensor:
        """Of the merged matrix."""
        return known[0][place.start : place.stop].clone()

    def bytes_read(self, inputs: "Sequence[TensorEntry]") -> int:
        """As the rule's."""
        return self.rule.bytes_read(inputs)

    def held(self, shape: tuple[int, ...]) -> int:
        """All inputs and the output in float32, tiles in double precision, and the rule's Grams."""
        inputs, outputs = shape
        tiles = 8 * self.rule.tiles * min(max(self.rule.tile_entries, inputs), inputs * outputs)
        whole = 4 * (len(self.rule.weights) + 2) * inputs * outputs
        return whole + tiles + self.rule.held((outputs, inputs))

    def operations(self, shape: tuple[int, ...]) -> float:
        """As the rule's."""
        return self.rule.operations(shape[::-1])
