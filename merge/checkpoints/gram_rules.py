"""Methods with curvature on whole checkpoints: gradient matching, RegMean, MaTS.

The closed forms of :mod:`vlora.merge.kronecker.closed_form` and :mod:`vlora.merge.methods.regmean` treat every row of a
weight on its own, so these two work by tiles of whole rows, with the Grams of one layer at hand. MaTS couples the rows
and takes the whole matrix. Grams stay in the precision of their file; everything else is in double precision.
What ``Conv1D`` (GPT-2) stores as (inputs, outputs) is transposed for MaTS here, for the others in
:mod:`vlora.merge.checkpoints.transposed_rules`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlora.grams import Gram, ShortGram, dense
from vlora.merge.checkpoints.matrix_rules import EIGEN, WholeMatrix
from vlora.merge.checkpoints.module_grams import ModuleGrams
from vlora.merge.checkpoints.rules import Rule
from vlora.merge.curvature.positive import check_definite
from vlora.merge.curvature.total import DenseTotal, Total, total_curvature
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.kronecker.closed_form import kronecker_rows
from vlora.merge.kronecker.system import PRECONDITIONED
from vlora.merge.methods.mats import DEFAULT_DAMPING, mats_dense, output_side
from vlora.merge.methods.regmean import Shrunk, regmean_merge, shrunk_total

if TYPE_CHECKING:
    from vlora.merge.checkpoints.headers import TensorEntry
    from vlora.merge.checkpoints.stream import TensorStream

__all__ = ["GradientMatching", "GramRows", "Mats", "RegMean"]

_TILE = 2**20
_STEPS = 40  # of conjugate gradients, for an estimate of the time


@dataclass(frozen=True)
class _Curvature:
    """Grams of one layer and what the rows are divided by."""

    grams: Sequence[Gram]
    factors: Sequence[float]
    total: Total
    clamped: float


@dataclass
class GramRows(Rule):
    """A method that makes every row of a weight from the same row of the inputs and the Grams of the layer."""

    weights: Sequence[float]
    grams: Sequence[ModuleGrams]
    kind: str = "input_gram"
    by_rows: bool = field(default=True)
    tile_entries: int = _TILE

    def __post_init__(self) -> None:
        """Tiles in double precision: one per model, and a few of the solution."""
        self.tiles = 2 * len(self.weights) + 12

    def bytes_read(self, inputs: "Sequence[TensorEntry]") -> int:
        """The weights once, and the Grams."""
        return super().bytes_read(inputs) + sum(gram.nbytes(self.kind) for gram in self.read_grams())

    def read_grams(self) -> Sequence[ModuleGrams]:
        """All Grams that are read."""
        return self.grams

    def held(self, shape: tuple[int, ...]) -> int:
        """Grams as stored, their sum in double precision and its factor; of short Grams what their span takes."""
        n = shape[1]
        grams = self.read_grams()
        kept = [gram.directions(self.kind) for gram in grams]
        stored = sum(gram.nbytes(self.kind) for gram in grams)
        if all(kept) and 2 * sum(k or 0 for k in kept) < n:
            span = sum(k or 0 for k in kept)
            return stored + 8 * (4 * n * span + 6 * span * span)
        return 4 * n * n * len(grams) + (8 * 2 + 4) * n * n

    def operations(self, shape: tuple[int, ...]) -> float:
        """A factorisation, and per row a product with every Gram and a refined solution."""
        m, n = shape
        return n**3 / 3 + m * n * n * (len(self.weights) + 5)


@dataclass
class GradientMatching(GramRows):
    """W_0 + scale * sum_t w_t (W_t - W_0) (G_t + tau I) (tau I + w P + sum_t w_t G_t)^-1, the base first.

    See :mod:`vlora.merge.methods.gradient_matching`; ``negative`` and ``keep``, P, as there for Kronecker curvature.
    """

    tau: float = 0.3
    scale: float = 1.0
    negative: str = "negate"
    keep: ModuleGrams | None = None
    keep_weight: float = 1.0

    def __post_init__(self) -> None:
        """Leave out what has no weight."""
        super().__post_init__()
        self.keep = self.keep if self.keep_weight > 0 else None

    def prepare(self, stream: "TensorStream") -> _Curvature:
        """Read the Grams and add them up.

        Raises:
            IncompatibleAdaptersError: A Gram is none, or negative weights outweigh the rest.
        """
        read = [gram.read(stream, self.kind) for gram in self.grams]
        grams, factors = (
            [gram.to(torch.float64) if isinstance(gram, ShortGram) else gram for gram, _ in read],
            [factor for _, factor in read],
        )
        total, clamped = self._total(stream, grams, factors)
        check_definite(stream.job.name, clamped)
        return _Curvature(grams, factors, total, clamped)

    def _total(
        self, stream: "TensorStream", grams: Sequence[Gram], factors: Sequence[float]
    ) -> tuple[Total, float]:
        """The Grams of all models, and that of what the base is to keep."""
        counts, grams, factors = self._counts(), [*grams], [*factors]
        if self.keep is not None:
            gram, factor = self.keep.read(stream, self.kind)
            grams.append(gram.to(torch.float64) if isinstance(gram, ShortGram) else gram)
            factors, counts = [*factors, factor], [*counts, self.keep_weight]
        return total_curvature(grams, factors, counts, self.tau, stream.job.name, torch.float64)

    def read_grams(self) -> Sequence[ModuleGrams]:
        """Of all models, and of what the base is to keep."""
        return [*self.grams, *([] if self.keep is None else [self.keep])]

    def findings(self, known: _Curvature) -> dict[str, Any]:
        """The clamped share, if any."""
        return {"clamped": round(known.clamped, 6)} if known.clamped else {}

    def tile(self, place: range, values: list[Tensor], known: _Curvature) -> Tensor:
        """The rows of a tile."""
        columns = self.grams[0].size(self.kind) or 1
        base, *models = (value.double().view(-1, columns) for value in values)
        rows = [
            model.sub_(base).mul_(-1.0 if count != weight else 1.0)
            for model, weight, count in zip(models, self.weights, self._counts(), strict=True)
        ]
        merged = kronecker_rows(rows, known.grams, known.factors, self._counts(), self.tau, known.total)
        return base.add_(merged, alpha=self.scale).float().flatten()

    def _counts(self) -> list[float]:
        """How much curvature counts: w_t, or under ``negate`` its size, the update then with the other sign."""
        return [abs(w) if self.negative == "negate" else w for w in self.weights]


@dataclass
class RegMean(GramRows):
    """(sum_t w_t W_t G_t) (sum_t w_t G_t)^-1, see :mod:`vlora.merge.methods.regmean`; no base.

    The first model is taken off all of them before and added after, which changes nothing but the rounding.
    """

    kind: str = "activation_gram"
    shrink: float = 0.9

    def prepare(self, stream: "TensorStream") -> tuple[list[Shrunk], DenseTotal]:
        """Shrunk Grams and their sum.

        Raises:
            IncompatibleAdaptersError: A Gram is none.
        """
        read = [(*gram.read(stream, self.kind), gram.where) for gram in self.grams]
        grams = [Shrunk.of(dense(gram), unit, where, self.shrink) for gram, unit, where in read]
        return grams, shrunk_total(grams, self.weights, stream.job.name)

    def tile(self, place: range, values: list[Tensor], known: tuple[list[Shrunk], DenseTotal]) -> Tensor:
        """The rows of a tile."""
        grams, total = known
        first, *others = (value.double().view(-1, len(total.matrix)) for value in values)
        rows = [torch.zeros_like(first), *(other.sub_(first) for other in others)]
        return regmean_merge(rows, grams, self.weights, total).add_(first).float().flatten()


@dataclass
class Mats(WholeMatrix):
    """W_0 + scale * X with sum_t w_t S_t X G_t + tau X = sum_t w_t (S_t D_t G_t + tau D_t) for D_t = W_t - W_0.

    S_t is damped. See :mod:`vlora.merge.methods.mats`.
    """

    grams: Sequence[ModuleGrams] = ()
    tau: float = 0.3
    steps: int = 100
    damping: float = DEFAULT_DAMPING
    order: Sequence[int] = ()
    """In which the models enter: conjugate gradients turn the rounding of a sum into steps."""

    def merge(
        self, stream: "TensorStream", changed: Sequence[int], squares: Sequence[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """X by conjugate gradients from the closed form, and how far they went."""
        order = self.order or range(len(self.weights))
        left, right = (
            [
                normalised_gram(dense(self.grams[t].read(stream, kind)[0]).double(), self.grams[t].where)
                for t in order
            ]
            for kind in ("output_gram", "input_gram")
        )
        left = [output_side(gram, self.damping) for gram in left]
        transposed = self.grams[0].transposed
        deltas, weights = [self.difference(stream, t) for t in order], [self.weights[t] for t in order]
        deltas = [delta.mT.contiguous() for delta in deltas] if transposed else deltas
        ones = [1.0] * len(right)
        total = total_curvature(right, ones, weights, self.tau, stream.job.name)[0]
        start = kronecker_rows(deltas, right, ones, weights, self.tau, total)
        found, taken, residual = mats_dense(
            deltas, left, right, weights, self.tau, steps=self.steps, start=start
        )
        found = found.mT.contiguous() if transposed else found
        return found, {"steps": taken, "residual": float(f"{residual:.3g}")}

    def bytes_read(self, inputs: "Sequence[TensorEntry]") -> int:
        """As of all whole matrices, and both Grams."""
        kinds = ("input_gram", "output_gram")
        return super().bytes_read(inputs) + sum(g.nbytes(kind) for g in self.grams for kind in kinds)

    def held(self, shape: tuple[int, ...]) -> int:
        """Differences and Grams in double precision, Grams again in float32, search directions, the preconditioner."""
        (m, n), count = shape, len(self.weights)
        whole = (2 * count + 7) * m * n + (2 * count + 4) * (m * m + n * n)
        return 8 * whole + 5 * 4 * min(PRECONDITIONED, m * n) ** 2

    def operations(self, shape: tuple[int, ...]) -> float:
        """Two eigenproblems, and products of every step in float32."""
        m, n = shape
        step = len(self.weights) * (m * m * n + m * n * n) / 2
        return EIGEN * (m**3 + n**3) / 2 + _STEPS * step + min(PRECONDITIONED, m * n) ** 3
