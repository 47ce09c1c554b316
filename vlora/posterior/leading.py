r"""A covariance over all tensors of an adapter at once: the directions that the data know best, and the rest.

Independent entries and Kronecker blocks leave out what ties the tensors of different layers together. The Fisher matrix
of the whole adapter does not fit in memory, but its k leading eigenvectors do. With per-example gradients :math:`g_i`,
each counted :math:`n_i` times,

.. math:: F = \sum_i n_i g_i g_i^\top \approx V \,\mathrm{diag}(l)\, V^\top, \qquad
          \Sigma = V \,\mathrm{diag}(1 / l)\, V^\top + \tfrac{1}{l_k} (I - V V^\top) :

what the eigenvectors leave out is as uncertain as the last of them. The scale of :math:`\Sigma` is that of the
counted examples, which is temperature 1; :meth:`Leading.resting` chooses another one by the precision of what is left
out, which is what a prior does here. After Sharma, Azizan and Pavone 2021 (arXiv:2102.12567), who find V by a random
sketch and add a prior precision to F instead, :math:`(F + \delta I)^{-1}`: at the :math:`\delta` that held-out rows
allow, little of F is left (``docs/scoring.md``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.errors import DataError, PosteriorFormatError

__all__ = ["Leading"]

_SMALLEST = 1e-10  # of the largest eigenvalue: below, float32 gradients are only noise
_KNOWN = 0.05  # of the information along a typical gradient: below, a direction counts as untouched
_COLUMNS = 2**14  # entries of every gradient that are held in double precision at a time
_VALUES = "eigenvalues"  # beside the rows of the keys, in a file


@dataclass(frozen=True)
class Leading:
    r"""Leading eigenvectors of a Fisher matrix.

    Attributes:
        keys: Tensors of the adapter in the order in which they were joined.
        vectors: Orthonormal columns, float32 ``(P, k)``, P the entries of all tensors together.
        values: Eigenvalues in falling order, float64 ``(k,)``, in nats per squared weight.
    """

    keys: tuple[str, ...]
    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, gradients: Iterable[Mapping[str, Tensor]], directions: int) -> "Leading":
        r"""Eigenvectors of :math:`\sum g g^\top` over all gradients given.

        Whenever twice ``directions`` gradients are together they are cut to ``directions`` eigenvectors, so the memory
        is that of three times as many gradients. Exact where no more than ``directions`` are independent, or where
        nothing was cut before the end; else what an early cut lost stays lost.

        Args:
            gradients: Chunks of gradients, each already times the root of its weight: key -> ``(M, *tensor)``.
            directions: Most eigenvectors to keep, k.

        Raises:
            DataError: No gradients, or all of them zero.
        """
        keys: tuple[str, ...] = ()
        held: list[Tensor] = []
        for chunk in gradients:
            keys = keys or tuple(sorted(chunk))
            held.append(_joined(chunk, keys))
            if sum(map(len, held)) >= 2 * directions:
                held = [_cut(held, directions)[1]]
        values, rows = _cut(held, directions) if held else (torch.empty(0), torch.empty(0))
        if not len(values):
            raise DataError("the Fisher matrix needs gradients that are not all zero, got none")
        rows /= values.sqrt().to(rows)[:, None]
        return cls(keys, rows.T, values)

    def covariance(self, gradients: Mapping[str, Tensor]) -> Tensor:
        r"""Covariance :math:`J \Sigma J^\top` of K outputs of every example under the linearised model.

        Args:
            gradients: Key -> gradient of each output, ``(N, K, *tensor)``.

        Returns:
            float64, ``(N, K, K)``.
        """
        return self.covariances(gradients, [self])[0]

    def covariances(self, gradients: Mapping[str, Tensor], same: Sequence["Leading"]) -> list[Tensor]:
        """The same for several with these eigenvectors; the gradients are projected once for all of them."""
        parts = [(gradients[key].float().flatten(2), own) for key, own in self._own(gradients).items()]
        known, rest = parts[0][0] @ parts[0][1], torch.zeros(())
        for flat, own in parts[1:]:
            known = known + flat @ own
        for flat, own in parts:  # what is left over, and not a difference of two large squares
            left = flat - known @ own.mT
            rest = rest.to(left.device) + (left @ left.mT).double()
        known, found = known.double(), []
        for one in same:
            values = one.values.to(known.device)
            found.append((known / values) @ known.mT + rest / values[-1])
        return found

    def share_left(
        self,
        gradients: Mapping[str, Tensor],
        precision: float | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        r"""What part of a prior variance of every example the data have left: a score for foreign inputs.

        .. math:: \frac{\mathrm{tr}\, J (F + \alpha I)^{-1} J^\top}{\mathrm{tr}\, J J^\top / \alpha}
                  = 1 - \frac{\sum_j \frac{l_j}{l_j + \alpha} |J v_j|^2}{|J|^2}

        with J less the shift that all outputs of an example share, which a softmax does not see. Unlike the variance it
        does not say how long a gradient is. Directions that were cut off count as untouched, which they nearly are
        where their eigenvalues are far below the precision.

        Args:
            gradients: Key -> gradient of each output, ``(N, K, *tensor)``, K of 2 or more.
            precision: alpha of the prior, in 1 / weight^2; None: :attr:`share_precision`.
            present: Which outputs an example has, bool ``(N, K)``; None: all. Others play no part.

        Returns:
            float64 ``(N,)``, between 0 (settled) and 1 (the data say nothing about this output); 1 without gradient.
        """
        precision = self.share_precision if precision is None else precision
        known, total = torch.zeros(()), torch.zeros(())
        for key, own in self._own(gradients).items():
            flat = _unshifted(gradients[key].float().flatten(2), present)
            known, total = known.to(flat) + flat @ own, total.to(flat) + flat.square().sum((1, 2))
        values = self.values.to(known.device)
        settled = (known.double().square() * (values / (values + precision))).sum((1, 2))
        return 1 - settled / total.double().clamp_min(torch.finfo(torch.float32).tiny)

    @property
    def share_precision(self) -> float:
        r"""The prior precision of :meth:`share_left`: a twentieth of what F knows along its own gradients.

        .. math:: \alpha = \frac{\mathrm{tr} F^2}{20\, \mathrm{tr} F} = \frac{\sum l_j^2}{20 \sum l_j}

        :math:`\mathrm{tr} F^2 / \mathrm{tr} F` is the mean of :math:`\hat g^\top F \hat g` over the gradients that F is
        made of, each weighted by its square. It goes along with F, so that :meth:`resting` changes no share, the
        leading eigenvalues alone settle it, and no prior, temperature or number of examples enters. The twentieth was
        chosen on practice rows (``benchmarks/classification_uq``).
        """
        return _KNOWN * float(self.values.square().sum() / self.values.sum())

    def correlated(self, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Standard-normal noise turned into noise with the covariance :math:`\Sigma`, exactly.

        .. math:: \Sigma^{1/2} \epsilon = \tfrac{1}{\sqrt{l_k}} \left( \epsilon +
                  V \left( \sqrt{l_k / l} - 1 \right) V^\top \epsilon \right),

        the symmetric root, at the cost of reading V twice. Noise along V shrinks with its eigenvalue, the rest is left
        as it is but for one number.

        Args:
            noise: Key -> independent standard-normal numbers, ``(*tensor)``.

        Returns:
            Key -> float32, ``(*tensor)``, on the device of the directions; linear in the noise.
        """
        values, device = self.values, self.vectors.device
        flat = torch.cat([noise[key].float().flatten() for key in self.keys]).to(device)
        shrink = ((values[-1] / values).sqrt() - 1).to(device, torch.float32)
        flat = (flat + self.vectors @ (shrink * (self.vectors.T @ flat))) / float(values[-1]) ** 0.5
        parts = flat.split([noise[key].numel() for key in self.keys])
        return {key: part.view(noise[key].shape) for key, part in zip(self.keys, parts, strict=True)}

    def resting(self, precision: float) -> "Leading":
        r"""Every eigenvalue times one number, so that what the eigenvectors leave out has this precision.

        .. math:: \Sigma = \frac{1}{\alpha} \left( V \,\mathrm{diag}(l_k / l)\, V^\top + I - V V^\top \right),

        with the precision :math:`\alpha`, which is temperature :math:`l_k / \alpha`: how much surer one direction is
        than another stays. It is what is fitted on held-out rows.

        Args:
            precision: In 1 / weight^2.
        """
        return replace(self, values=self.values * (precision / float(self.values[-1])))

    def to(self, device: torch.device | str) -> "Leading":
        """The same on a device."""
        return replace(self, vectors=self.vectors.to(device), values=self.values.to(device))

    def tensors(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """As they are stored: key -> ``(k, *tensor)``, and ``eigenvalues``.

        Args:
            shapes: Key -> shape of the tensor.

        Raises:
            PosteriorFormatError: These are not the shapes of the directions.
        """
        sizes = [math.prod(shapes.get(key, ())) for key in self.keys]
        if sum(sizes) != len(self.vectors) or set(self.keys) != set(shapes):
            raise PosteriorFormatError(
                f"the directions are those of {len(self.keys)} tensors with {len(self.vectors)} entries, the posterior "
                f"has {len(shapes)} stochastic ones with {sum(sizes)}; measure them again at its mean"
            )
        rows = self.vectors.T.split(sizes, dim=1)
        found = {key: own.reshape(-1, *shapes[key]) for key, own in zip(self.keys, rows, strict=True)}
        return {**found, _VALUES: self.values}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], where: str
    ) -> "Leading":
        """Check and read what :meth:`tensors` gives.

        Args:
            tensors: Content of the file.
            shapes: Stochastic tensors of the posterior: key -> shape.
            where: The file, for messages.

        Raises:
            PosteriorFormatError: Keys, shapes or numbers that cannot be those of this posterior.
        """
        rows = {key: value for key, value in tensors.items() if key != _VALUES}
        values = tensors.get(_VALUES)
        if values is None or values.ndim != 1 or not _falling(values):
            raise PosteriorFormatError(
                f"{where} needs {_VALUES}, positive numbers in falling order; copy it again or delete it"
            )
        if odd := sorted(rows.keys() ^ shapes.keys()):
            who = "the posterior has no h for" if odd[0] in rows else "it lacks"
            raise PosteriorFormatError(f"{where} belongs to another adapter: {who} {odd[0]}; delete it")
        for key, value in rows.items():
            if value.shape != (len(values), *shapes[key]):
                raise PosteriorFormatError(
                    f"{where} belongs to another adapter: {key} has shape {tuple(value.shape)}, expected "
                    f"{(len(values), *shapes[key])}; delete it"
                )
        joined = _joined(rows, sorted(rows))
        if not bool((joined.norm(dim=1) - 1).abs().max() < 0.01):  # NaN too
            raise PosteriorFormatError(f"{where} holds directions that are not of length 1; copy it again")
        return cls(tuple(sorted(rows)), joined.T, values.double())

    def _own(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Key -> its part of the eigenvectors, ``(entries, k)``."""
        sizes = [gradients[key][0, 0].numel() for key in self.keys]
        return dict(zip(self.keys, self.vectors.split(sizes), strict=True))


def _unshifted(flat: Tensor, present: Tensor | None) -> Tensor:
    """Gradients ``(N, K, P)`` less the mean of the outputs that an example has; zero for the others."""
    if present is None:
        return flat - flat.mean(1, keepdim=True)
    there = present.to(flat)[..., None]
    return (flat - (flat * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1)) * there


def _falling(values: Tensor) -> bool:
    """Whether these are positive, finite numbers in falling order, at least one."""
    return bool(
        len(values) and values[-1] > 0 and values.isfinite().all() and (values[:-1] >= values[1:]).all()
    )


def _joined(gradients: Mapping[str, Tensor], keys: Iterable[str]) -> Tensor:
    """All tensors of every gradient in one row, float32 ``(M, P)``."""
    return torch.cat([gradients[key].float().flatten(1) for key in keys], dim=-1)


def _cut(held: Sequence[Tensor], directions: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues of the sum over all rows, and the eigenvectors times their roots, ``(k, P)``.

    Products are of doubles, a block of columns at a time: in float32 the square of the largest gradient would drown the
    small eigenvalues.
    """
    starts = range(0, held[0].shape[1], _COLUMNS)
    gram: Tensor | float = 0.0
    for start in starts:
        block = _block(held, start)
        gram = gram + block @ block.T
    found, mixing = torch.linalg.eigh(gram)
    found, mixing = found.flip(0)[:directions], mixing.flip(1)[:, :directions]
    used = (found > _SMALLEST * found[:1]) & (found > 0)
    mixing = mixing[:, used].T
    rows = held[0].new_empty(len(mixing), held[0].shape[1])
    for start in starts:
        rows[:, start : start + _COLUMNS] = (mixing @ _block(held, start)).float()
    return found[used], rows


def _block(held: Sequence[Tensor], start: int) -> Tensor:
    return torch.cat([rows[:, start : start + _COLUMNS] for rows in held]).double()
