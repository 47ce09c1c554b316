"""Methods that need whole matrices of whole checkpoints: TSV, Iso-C, MaTS.

Where all other rules see a tile, these see W_t - W_0 as a matrix in double precision, as :mod:`vlora.merge.methods.tsv`
and its neighbours see an adapter's update. The result is held in float32 and added to the base tile by tile. Memory
grows with the matrix (:meth:`WholeMatrix.held`), not with the model. Tensors that are no weight matrices never come
here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.merge.checkpoints.headers import DTYPES
from vlora.merge.checkpoints.rules import NotFinite, Rule
from vlora.merge.low_rank.algebra import kept_components
from vlora.merge.low_rank.dense_svd import gram_svd, rounding_level
from vlora.merge.methods.iso import isotropic
from vlora.merge.methods.tsv import triples_per_task, tsv_merge

if TYPE_CHECKING:
    from vlora.merge.checkpoints.headers import TensorEntry
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["EIGEN", "IsoC", "Merged", "Tsv", "WholeMatrix"]

EIGEN = 7.0
"""Time of a symmetric eigenproblem of size n on one core, in multiply-adds / n^3 of a matrix product."""
_SAME = 1e-5  # vectors of two models closer than this are one: of float32 weights they are not known better
_DOUBLE = 8


@dataclass(frozen=True)
class Merged:
    """What a whole matrix became."""

    update: Tensor
    """What is added to the base: flat, float32."""
    findings: dict[str, Any]
    """For the journal."""


@dataclass
class WholeMatrix(Rule):
    """W_0 + scale * X with X made of whole differences W_t - W_0; inputs are the base and the models."""

    weights: Sequence[float]
    scale: float = 1.0
    tile_inputs: Sequence[int] | None = (0,)

    def prepare(self, stream: "TensorStream") -> Merged:
        """Read, merge, and keep what is to be added."""
        shape = stream.job.shape
        sizes = self._sizes(stream)
        changed = [t for t, (moved, _) in enumerate(sizes) if moved > 0]
        if not changed:
            return Merged(torch.zeros(math.prod(shape)), {})
        merged, findings = self.merge(stream, changed, [size for _, size in sizes])
        return Merged((merged * self.scale).float().flatten(), findings)

    def merge(
        self, stream: "TensorStream", changed: Sequence[int], squares: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """X in double precision, and findings.

        Args:
            stream: The inputs.
            changed: Numbers of the models that differ from the base.
            squares: Mean of w^2 of every model.
        """
        raise TypeError(f"{type(self).__name__} has no rule for a matrix")

    def findings(self, known: Merged) -> dict[str, Any]:
        """What :meth:`merge` found."""
        return known.findings

    def tile(self, place: range, values: list[Tensor], known: Merged) -> Tensor:
        """The base and what is added to it."""
        return values[0].add_(known.update[place.start : place.stop])

    def bytes_read(self, inputs: "Sequence[TensorEntry]") -> int:
        """One pass for sizes, the base again with every model, and the base for the output."""
        base, *models = (entry.nbytes for entry in inputs)
        return (len(models) + 2) * base + 2 * sum(models)

    def difference(self, stream: "TensorStream", number: int) -> Tensor:
        """W_t - W_0 as a matrix in double precision."""
        found = torch.empty(stream.job.shape, dtype=torch.float64)
        flat = found.view(-1)
        for place, (base, model) in stream.passes((0, number + 1)):
            torch.sub(model.double(), base.double(), out=flat[place.start : place.stop])
        return found

    def noise(self, stream: "TensorStream", number: int, square: float, stored: bool = False) -> float:
        """Largest singular value that rounding makes: to float32, or to the dtype that the model is stored in."""
        dtype = DTYPES[stream.job.inputs[number + 1].dtype] if stored else torch.float32
        return rounding_level(square, _sides(stream.job.shape), torch.finfo(dtype).eps)

    def _sizes(self, stream: "TensorStream") -> list[tuple[float, float]]:
        """Per model the mean of (w - w_0)^2 and of w^2, and a refusal of what is not finite."""
        rows = []
        for _, (base, *models) in stream.passes():
            squares = []
            for number, model in enumerate(models):
                size = model.double().square().sum().item()
                moved = model.sub_(base).double().square().sum().item()
                if not math.isfinite(size + moved):
                    raise NotFinite(number + 1)
                squares += [moved, size]
            rows.append(squares)
        totals = [math.fsum(column) / stream.tiling.numel for column in zip(*rows, strict=True)]
        return list(zip(totals[::2], totals[1::2], strict=True))


@dataclass
class Tsv(WholeMatrix):
    """TSV-Merge, see :mod:`vlora.merge.methods.tsv`; k = min(m, n) / number of models that changed the matrix.

    Deviation: directions that the rounding of float32 weights explains are left out, as a model that is its base and an
    adapter has min(m, n) - r of them.
    """

    task_rank: int | None = None

    def merge(
        self, stream: "TensorStream", changed: Sequence[int], squares: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """U_perp diag(Sigma) V_perp^T."""
        count = self.task_rank or triples_per_task(min(stream.job.shape), len(changed))
        parts, below = [], []
        for t in changed:
            part = gram_svd(self.difference(stream, t), count, self.noise(stream, t, squares[t]))
            below.append((part[1] < self.noise(stream, t, squares[t], stored=True)).double().mean().item())
            parts.append(part)
        b, a = tsv_merge(parts, [self.weights[t] for t in changed], partial(gram_svd, floor=_SAME))
        return b @ a, _rounded(below)

    def held(self, shape: tuple[int, ...]) -> int:
        """Four matrices of m x n and seven of the smaller side squared, in double precision."""
        m, n = _sides(shape)
        return _DOUBLE * (4 * m * n + 7 * min(m, n) ** 2)

    def operations(self, shape: tuple[int, ...]) -> float:
        """A decomposition per model and of both stacks of vectors."""
        small, large = sorted(_sides(shape))
        return (len(self.weights) + 2) * (EIGEN * small**3 + 2 * small**2 * large)


@dataclass
class IsoC(WholeMatrix):
    """Iso-C, see :mod:`vlora.merge.methods.iso`; all directions of the sum but those that float32 rounding explains."""

    rank: int | float | None = None
    """Leading directions, or the share of the sum's energy that they hold; all of them if None."""

    def merge(
        self, stream: "TensorStream", changed: Sequence[int], squares: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """mean(sigma) U V^T of the sum."""
        total = torch.zeros(stream.job.shape, dtype=torch.float64)
        for t in changed:
            total.add_(self.difference(stream, t), alpha=self.weights[t])
        floor, stored = (
            sum(abs(self.weights[t]) * self.noise(stream, t, squares[t], kind) for t in changed)
            for kind in (False, True)
        )
        u, values, vh = gram_svd(total, None, floor)
        keep = len(values) if self.rank is None else kept_components(values, self.rank)
        equal = isotropic(values[:keep])
        return (u[:, :keep] * equal) @ vh[:keep], _rounded([(values[:keep] < stored).double().mean().item()])

    def held(self, shape: tuple[int, ...]) -> int:
        """Three matrices of m x n and four of the smaller side squared, in double precision."""
        m, n = _sides(shape)
        return _DOUBLE * (3 * m * n + 4 * min(m, n) ** 2)

    def operations(self, shape: tuple[int, ...]) -> float:
        """One decomposition."""
        small, large = sorted(_sides(shape))
        return EIGEN * small**3 + 3 * small**2 * large


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    m, n = shape
    return m, n


def _rounded(shares: Sequence[float]) -> dict[str, Any]:
    """Finding: the share of directions that the rounding to the stored dtype explains; none for float32."""
    share = max((s for s in shares if s == s), default=0.0)
    return {"rounded": round(share, 3)} if share > 0 else {}
